// The kernels that every instruction set provides. perturb.cpp and accumulate.cpp are compiled once for each set, and
// hold no inline function of the standard library: a copy made for AVX-512 could otherwise be linked into all of them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../jobs.h"

namespace rsfast {

// What one thread does of accumulate: of rows [begin, end) in `order`, every step-th item from first. Item 0 is the votes,
// item h + 1 a head. Threads may share the rows of votes alone, not those of heads.
struct AccumulateShare {
  const int64_t* order;  // [batch]: row numbers whose slots ascend; null: as they come
  int64_t begin, end, first, step;
};

struct Kernels {
  // Work units [begin, end) of perturb_units(job).
  void (*perturb)(const PerturbJob& job, int64_t begin, int64_t end);
  // scratch: accumulate_scratch(job) bytes.
  void (*accumulate)(const AccumulateJob& job, const AccumulateShare& share, char* scratch);
  size_t (*accumulate_scratch)(const AccumulateJob& job);
  // Random words of one input in stream order, and a draw's standard noise of given words; for tests and benchmarks.
  void (*philox_words)(const int64_t counter[3], uint64_t seed, int64_t first_block, int64_t blocks, uint32_t* out);
  void (*noise_of_words)(int draw, const uint32_t* words, int64_t count, float* out);
};

// What one unit of perturb writes: 4096 elements of a row, so that its input stays in L1, or 256 positions of all channels.
static inline int64_t perturb_unit_length(const PerturbJob& job) { return job.channels_last ? 256 : 4096; }

static inline int64_t perturb_units(const PerturbJob& job) {
  const int64_t row = job.channels_last ? job.elements / job.channels : job.elements;
  const int64_t length = perturb_unit_length(job);
  return (row + length - 1) / length * job.batch;
}

// A name of this instruction set: RSFAST_NAME(kernels_) is kernels_avx2 where RSFAST_ISA is avx2.
#define RSFAST_JOIN(a, b) a##b
#define RSFAST_EXPAND(a, b) RSFAST_JOIN(a, b)
#define RSFAST_NAME(prefix) RSFAST_EXPAND(prefix, RSFAST_ISA)

extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512;

}  // namespace rsfast
