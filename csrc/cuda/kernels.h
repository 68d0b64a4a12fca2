// What module.cpp calls. All work is queued on the stream; nothing waits for it.
#pragma once

#include <cuda_runtime_api.h>

#include "../jobs.h"

namespace rsfast {

constexpr int64_t kFloorThreads = 1 << 20;

cudaError_t perturb(const PerturbJob& job, cudaStream_t stream);
cudaError_t accumulate(const AccumulateJob& job, cudaStream_t stream);

// `blocks` Philox blocks and no memory traffic but one word a thread: out is [kFloorThreads].
cudaError_t philox_floor(uint64_t seed, int64_t blocks, uint32_t* out, cudaStream_t stream);

// What a draw makes of words, of which `count` is a multiple of four; for draws that take nothing else.
cudaError_t noise_of_words(int draw, const uint32_t* words, int64_t count, float* out, cudaStream_t stream);

// Load all kernels of perturb and accumulate on the current device: that is not to happen in the middle of a graph's
// capture. An error if this build has neither machine code nor PTX for it.
cudaError_t load_perturb();
cudaError_t load_accumulate();

}  // namespace rsfast
