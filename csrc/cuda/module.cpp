// rsfast.ops._cuda: the device, the stream and Python. Like rsfast.ops._cpu it takes the addresses of structs; it links
// neither torch nor a driver, so it can be imported anywhere.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "../noise.h"
#include "kernels.h"

namespace py = pybind11;

namespace rsfast {
namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgotten, so that no later launch is blamed for it
  throw std::runtime_error(what + ": CUDA error: " + cudaGetErrorString(error));
}

// A function of the driver, which is looked up rather than linked.
template <class Function>
Function* driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  check(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result), name);
  if (!found) throw std::runtime_error(std::string(name) + ": the driver does not have this function");
  return reinterpret_cast<Function*>(found);
}

// Makes a device current, and at the end the context that was current before, or none if there was none: to set the device
// before would create a context of some 500 MB on a GPU that nobody uses.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    static auto* const get_context = driver_function<decltype(cuCtxGetCurrent)>("cuCtxGetCurrent");
    set_context();
    if (get_context(&before_) != CUDA_SUCCESS) before_ = nullptr;
    check(cudaSetDevice(device), "rsfast: device " + std::to_string(device));
  }
  ~OnDevice() { set_context()(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  static decltype(cuCtxSetCurrent)* set_context() {
    static auto* const function = driver_function<decltype(cuCtxSetCurrent)>("cuCtxSetCurrent");
    return function;
  }
  CUcontext before_ = nullptr;
};

int devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

std::string unavailable_reason(int device) {
  try {
    const OnDevice on(device);
    check(load_perturb(), "perturb");
    check(load_accumulate(), "accumulate");
  } catch (const std::runtime_error& error) {  // a driver that is older than the toolkit, say
    return error.what();
  }
  return "";
}

std::string shape(const char* name, std::initializer_list<int64_t> lengths) {
  std::string text = std::string(name) + " [";
  for (const int64_t length : lengths) text += (text.back() == '[' ? "" : ", ") + std::to_string(length);
  return text + "]";
}

void perturb_on(uintptr_t address, int device, uintptr_t stream) {
  const PerturbJob& job = *at<const PerturbJob>(address);
  const py::gil_scoped_release release;
  const OnDevice on(device);
  check(perturb(job, at<CUstream_st>(stream)),
        "rsfast.perturb of " + shape("x", {job.inputs, job.elements}) + " to " + shape("out", {job.batch, job.elements}));
}

void accumulate_on(uintptr_t address, int device, uintptr_t stream) {
  const AccumulateJob& job = *at<const AccumulateJob>(address);
  const py::gil_scoped_release release;
  const OnDevice on(device);
  check(accumulate(job, at<CUstream_st>(stream)), "rsfast.accumulate of " + shape("logits", {job.batch, job.classes}) +
                                                      " to " + shape("sums", {job.inputs, job.heads, job.classes}));
}

void philox_floor_on(int64_t blocks, uint64_t seed, uintptr_t out, int device, uintptr_t stream) {
  const py::gil_scoped_release release;
  const OnDevice on(device);
  check(philox_floor(seed, blocks, at<uint32_t>(out), at<CUstream_st>(stream)), "philox_floor");
}

void noise_of_words_on(int draw, uintptr_t words, int64_t count, uintptr_t out, int device, uintptr_t stream) {
  const py::gil_scoped_release release;
  const OnDevice on(device);
  check(noise_of_words(draw, at<const uint32_t>(words), count, at<float>(out), at<CUstream_st>(stream)),
        "noise_of_words of " + shape("words", {count}));
}

}  // namespace
}  // namespace rsfast

PYBIND11_MODULE(_cuda, m) {
  using namespace rsfast;
  m.doc() = "CUDA kernels. Tensors are addresses; rsfast.ops checks them. Work is queued on the stream that is named.";
  m.def("devices", &devices, "The number of devices; 0 where there is no driver.");
  m.def("unavailable_reason", &unavailable_reason, py::arg("device"),
        "Load the kernels on a device. Why that cannot be, or ''.");
  m.def(
      "draws",
      [] {
        py::list names;
        for (const char* name : {RSFAST_DRAWS(RSFAST_DRAW_NAME)}) names.append(name);
        return names;
      },
      "The draws that these kernels have, in the order of their numbers.");
  m.def(
      "sizes", [] { return std::make_pair(sizeof(PerturbJob), sizeof(AccumulateJob)); },
      "Of the two structs, to be compared with Python's.");
  m.def("perturb", &perturb_on, py::arg("job"), py::arg("device"), py::arg("stream"), "job: the address of a PerturbJob.");
  m.def("accumulate", &accumulate_on, py::arg("job"), py::arg("device"), py::arg("stream"),
        "job: the address of an AccumulateJob.");
  m.def("philox_floor", &philox_floor_on, py::kw_only(), py::arg("blocks"), py::arg("seed"), py::arg("out"),
        py::arg("device"), py::arg("stream"), "Random words alone, for benchmarks; out: uint32 [2^20].");
  m.def("noise_of_words", &noise_of_words_on, py::kw_only(), py::arg("draw"), py::arg("words"), py::arg("count"),
        py::arg("out"), py::arg("device"), py::arg("stream"), "What a draw makes of words: blocks of four.");
}
