// perturb's kernels and their launch.
#include "kernels.h"
#include "perturb.h"

namespace rsfast {
namespace {

template <Draw D, Type T, Layout L, bool Aligned, Options O>
__global__ void __launch_bounds__(kMostThreads) perturb_kernel(const __grid_constant__ PerturbGrid grid) {
  const Block block = this_block();
  if (block.y < grid.job.batch) PerturbKernel<D, T, L, Aligned, O>::run(block, grid);
}

template <Draw D, Type T, Layout L, bool Aligned, Options O>
auto address_of(PerturbKernel<D, T, L, Aligned, O>) {
  return perturb_kernel<D, T, L, Aligned, O>;
}

auto kernel_for(const PerturbGrid& g) {
  return with_kernel(g, [](auto kernel) { return address_of(kernel); });
}

// Random words and nothing else: each thread makes blocks, and writes one word that depends on all of them.
__global__ void __launch_bounds__(kMostThreads)
    philox_kernel(const __grid_constant__ Key key, int64_t blocks, uint32_t* out) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  uint32_t all = 0;
  for (int64_t b = thread; b < blocks; b += threads) {
    const auto w = philox<uint64_t, uint64_t>(b, 1, 2, 3, key);
    all ^= static_cast<uint32_t>(w.a ^ w.b ^ w.c ^ w.d);
  }
  out[thread] = all;
}

}  // namespace

cudaError_t perturb(const PerturbJob& job, cudaStream_t stream) {
  const PerturbGrid g = make_grid(job);
  const auto kernel = kernel_for(g);
  kernel<<<grid_of(g.pieces, job.batch), g.threads, g.shared, stream>>>(g);
  return cudaGetLastError();
}

cudaError_t load_perturb() {
  cudaFuncAttributes attributes;
  PerturbGrid g = {};
  for (const Draw draw : {RSFAST_DRAWS(RSFAST_DRAW_VALUE)})
    for (const Type type : {Type::float32, Type::float16, Type::bfloat16, Type::float64})
      for (const Layout layout : {Layout::contiguous, Layout::channels_last, Layout::three_channels})
        for (const bool aligned : {false, true})
          for (int options = 0; options <= static_cast<int>(Options::any); ++options) {
            g.job.noise.draw = draw, g.job.type = type, g.layout = layout, g.aligned = aligned;
            g.options = static_cast<Options>(options);
            if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel_for(g))) return error;
          }
  return cudaSuccess;
}

cudaError_t philox_floor(uint64_t seed, int64_t blocks, uint32_t* out, cudaStream_t stream) {
  philox_kernel<<<kFloorThreads / kMostThreads, kMostThreads, 0, stream>>>(make_key(seed), blocks, out);
  return cudaGetLastError();
}

}  // namespace rsfast
