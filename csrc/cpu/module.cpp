// rsfast.ops._cpu: picks the instruction set and divides the work among threads.
// Tensors come as addresses and are checked by rsfast/ops; the GIL is released while kernels run.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "../binding.h"
#include "kernels.h"

namespace rsfast {
namespace {

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
};

std::vector<InstructionSet> usable_sets() {  // best last
  std::vector<InstructionSet> sets = {{"baseline", &kernels_baseline}};
#if defined(RSFAST_X86_64)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back({"avx2", &kernels_avx2});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    sets.push_back({"avx512", &kernels_avx512});
#endif
  return sets;
}

InstructionSet current;

void use_isa(const std::string& name) {
  std::string names;
  for (const InstructionSet& set : usable_sets()) {
    if (name == set.name) {
      current = set;
      return;
    }
    names += (names.empty() ? "" : ", ") + std::string(set.name);
  }
  throw std::invalid_argument("the instruction set (RSFAST_CPU_ISA) is '" + name +
                              "'; on this processor it must be one of " + names);
}

// IEEE arithmetic with subnormals, whatever the calling thread is set to (on x86-64 and aarch64).
class [[maybe_unused]] IeeeMode {
#if defined(__SSE2__)
 public:
  IeeeMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~IeeeMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
 public:
  IeeeMode() { asm volatile("mrs %0, fpcr\n\tmsr fpcr, xzr" : "=r"(saved_) : : "memory"); }
  ~IeeeMode() { asm volatile("msr fpcr, %0" : : "r"(saved_) : "memory"); }

 private:
  uint64_t saved_;
#endif
};

// libgomp's entry point: runs function(data) on a team of threads, the caller's among them.
using TeamParallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
TeamParallel team_parallel = nullptr;

// Runs work(i) for i in [0, parts) on up to `threads` threads, each of which takes the next part when it has done one.
template <class Work>
void run_parts(int64_t parts, int64_t threads, const Work& work) {
  struct Job {
    const Work& work;
    const int64_t parts;
    std::atomic<int64_t> taken{0};
  } job{work, parts};
  const auto take_parts = [](void* data) {
    const IeeeMode mode;
    Job& job = *static_cast<Job*>(data);
    for (int64_t i; (i = job.taken.fetch_add(1)) < job.parts;) job.work(i);
  };
  threads = std::min(threads, parts);
  if (threads > 1 && team_parallel) return team_parallel(take_parts, &job, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < threads; ++i) others.emplace_back(take_parts, &job);
  } catch (const std::system_error&) {  // a thread that cannot be had is done without
  }
  take_parts(&job);
  for (std::thread& thread : others) thread.join();
}

// [0, units) in equal ranges of at least `grain` units, several a thread.
template <class Work>
void run_ranges(int64_t units, int64_t grain, int64_t threads, const Work& work) {
  const int64_t parts = threads == 1 ? 1 : std::max<int64_t>(1, std::min(8 * threads, units / std::max<int64_t>(1, grain)));
  run_parts(parts, threads, [&](int64_t i) { work(units * i / parts, units * (i + 1) / parts); });
}

constexpr int64_t kWorthAThread = 1 << 16;  // elements: about 50 microseconds, a few times what starting a thread takes

void perturb(uintptr_t address, int64_t threads) {
  const PerturbJob& job = *at<const PerturbJob>(address);
  const GilReleased released;
  const int64_t units = perturb_units(job);
  const int64_t grain = kWorthAThread * units / std::max<int64_t>(1, job.batch * job.elements);
  run_ranges(units, grain, threads, [&](int64_t begin, int64_t end) { current.kernels->perturb(job, begin, end); });
}

void accumulate(uintptr_t address, int64_t threads) {
  const AccumulateJob& job = *at<const AccumulateJob>(address);
  const GilReleased released;
  std::vector<int64_t> order;
  if (job.inputs > 1 && !std::is_sorted(job.slots, job.slots + job.batch)) {
    order.resize(job.batch);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&job](int64_t a, int64_t b) { return job.slots[a] < job.slots[b]; });
  }
  // Threads share the heads, if there are any, and each reads all logits: no two write the same counter. Else, the rows.
  const int64_t items = job.heads + 1, shares = job.heads ? items : job.batch;
  const int64_t worth = job.batch * job.classes * items / kWorthAThread;
  const int64_t parts = std::max<int64_t>(1, std::min({threads, shares, worth}));
  const size_t bytes = current.kernels->accumulate_scratch(job);
  const std::unique_ptr<char[]> scratch(new char[parts * bytes]);  // not filled: it would take longer than a small batch
  run_parts(parts, parts, [&](int64_t i) {
    AccumulateShare share{order.empty() ? nullptr : order.data(), 0, job.batch, i, parts};
    if (!job.heads) share = {share.order, job.batch * i / parts, job.batch * (i + 1) / parts, 0, 1};
    current.kernels->accumulate(job, share, scratch.get() + i * bytes);
  });
}

void philox_words(uint64_t seed, int64_t c1, int64_t c2, int64_t c3, int64_t first_block, int64_t blocks, uintptr_t out,
                  int64_t threads) {
  const GilReleased released;
  const int64_t counter[3] = {c1, c2, c3}, tile = 16;
  run_ranges((blocks + tile - 1) / tile, kWorthAThread / (4 * tile), threads, [&](int64_t begin, int64_t end) {
    const int64_t from = begin * tile, count = std::min(end * tile, blocks) - from;
    current.kernels->philox_words(counter, seed, first_block + from, count, at<uint32_t>(out) + 4 * from);
  });
}

void noise_of_words(int draw, uintptr_t words, int64_t count, uintptr_t out) {
  const GilReleased released;
  const IeeeMode mode;
  current.kernels->noise_of_words(draw, at<const uint32_t>(words), count, at<float>(out));
}

void use_team(uintptr_t gomp_parallel) { team_parallel = reinterpret_cast<TeamParallel>(gomp_parallel); }

std::string isa() { return current.name; }

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const InstructionSet& set : usable_sets()) names.emplace_back(set.name);
  return names;
}

PyMethodDef functions[] = {
    python_function<isa>("isa", "The instruction set in use."),
    python_function<use_isa>("use_isa", "(name): use an instruction set, for the whole process."),
    python_function<isas>("isas", "The instruction sets built and usable on this processor, best last."),
    python_function<use_team>("use_team",
                              "(gomp_parallel): run on the OpenMP team whose GOMP_parallel is at this address; 0: "
                              "on threads of our own."),
    python_function<version>("version", "Of rsfast, when this was built."),
    python_function<draws>("draws", "The draws that these kernels have, in the order of their numbers."),
    python_function<sizes>("sizes", "Of PerturbJob and AccumulateJob, to be compared with Python's."),
    python_function<perturb>("perturb", "(job, threads): job is the address of a PerturbJob."),
    python_function<accumulate>("accumulate", "(job, threads): job is the address of an AccumulateJob."),
    python_function<philox_words>("philox_words", "(seed, c1, c2, c3, first_block, blocks, out, threads)"),
    python_function<noise_of_words>("noise_of_words",
                                    "(draw, words, count, out): what a draw makes of words, in blocks of "
                                    "four, of which the last may be cut short."),
    {}};

int choose_isa(PyObject*) {
  current = usable_sets().back();
  const char* forced = std::getenv("RSFAST_CPU_ISA");
  if (!forced || !*forced) return 0;
  try {
    use_isa(forced);
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ImportError, error.what());
    return -1;
  }
  return 0;
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(choose_isa)}, {}};
PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_cpu", "CPU kernels. Tensors are addresses; rsfast.ops checks them.", 0, functions, slots};

}  // namespace
}  // namespace rsfast

PyMODINIT_FUNC PyInit__cpu() { return PyModuleDef_Init(&rsfast::module); }
