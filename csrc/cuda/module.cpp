// rsfast.ops._cuda: the device, the stream and Python. Like rsfast.ops._cpu it takes the addresses of structs; it links
// neither torch nor a driver, so it can be imported anywhere.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "../binding.h"
#include "kernels.h"

namespace rsfast {
namespace {

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
  const GilReleased released;
  const OnDevice on(device);
  check(perturb(job, at<CUstream_st>(stream)),
        "rsfast.perturb of " + shape("x", {job.inputs, job.elements}) + " to " + shape("out", {job.batch, job.elements}));
}

void accumulate_on(uintptr_t address, int device, uintptr_t stream) {
  const AccumulateJob& job = *at<const AccumulateJob>(address);
  const GilReleased released;
  const OnDevice on(device);
  check(accumulate(job, at<CUstream_st>(stream)), "rsfast.accumulate of " + shape("logits", {job.batch, job.classes}) +
                                                      " to " + shape("sums", {job.inputs, job.heads, job.classes}));
}

void philox_floor_on(int64_t blocks, uint64_t seed, uintptr_t out, int device, uintptr_t stream) {
  const GilReleased released;
  const OnDevice on(device);
  check(philox_floor(seed, blocks, at<uint32_t>(out), at<CUstream_st>(stream)), "philox_floor");
}

void noise_of_words_on(int draw, uintptr_t words, int64_t count, uintptr_t out, int device, uintptr_t stream) {
  const GilReleased released;
  const OnDevice on(device);
  check(noise_of_words(draw, at<const uint32_t>(words), count, at<float>(out), at<CUstream_st>(stream)),
        "noise_of_words of " + shape("words", {count}));
}

PyMethodDef functions[] = {
    python_function<devices>("devices", "The number of devices; 0 where there is no driver."),
    python_function<unavailable_reason>("unavailable_reason",
                                        "(device): load the kernels on a device. Why that cannot be, or ''."),
    python_function<version>("version", "Of rsfast, when this was built."),
    python_function<draws>("draws", "The draws that these kernels have, in the order of their numbers."),
    python_function<sizes>("sizes", "Of PerturbJob and AccumulateJob, to be compared with Python's."),
    python_function<perturb_on>("perturb", "(job, device, stream): job is the address of a PerturbJob."),
    python_function<accumulate_on>("accumulate", "(job, device, stream): job is the address of an AccumulateJob."),
    python_function<philox_floor_on>("philox_floor",
                                     "(blocks, seed, out, device, stream): random words alone, for "
                                     "benchmarks; out is uint32 [2^20]."),
    python_function<noise_of_words_on>("noise_of_words",
                                       "(draw, words, count, out, device, stream): what a draw makes of "
                                       "words, in blocks of four."),
    {}};

const char* const kDoc =
    "CUDA kernels. Tensors are addresses; rsfast.ops checks them. Work is queued on the stream that is named.";
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cuda", kDoc, 0, functions};

}  // namespace
}  // namespace rsfast

PyMODINIT_FUNC PyInit__cuda() { return PyModuleDef_Init(&rsfast::module); }
