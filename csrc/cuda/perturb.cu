// perturb's kernels and their launch.
#include "kernels.h"
#include "perturb.h"

namespace rsfast {
namespace {

template <Draw D, Type T, bool ChannelsLast, bool Aligned>
__global__ void __launch_bounds__(kMostThreads) perturb_kernel(const __grid_constant__ PerturbGrid grid) {
  const Block block = this_block();
  if (block.y >= grid.job.batch) return;
  if constexpr (ChannelsLast)
    perturb_channels_last<D, T, Aligned>(block, grid);
  else
    perturb_contiguous<D, T, Aligned>(block, grid);
}

template <Draw D, Type T>
auto kernel_for(bool channels_last, bool aligned) {
  return channels_last ? aligned ? perturb_kernel<D, T, true, true> : perturb_kernel<D, T, true, false>
         : aligned     ? perturb_kernel<D, T, false, true>
                       : perturb_kernel<D, T, false, false>;
}

auto kernel_for(Draw draw, Type type, bool channels_last, bool aligned) {
  return with_draw(draw, [=](auto is) {
    constexpr Draw D = decltype(is)::draw;
    switch (type) {
      case Type::float16: return kernel_for<D, Type::float16>(channels_last, aligned);
      case Type::bfloat16: return kernel_for<D, Type::bfloat16>(channels_last, aligned);
      case Type::float64: return kernel_for<D, Type::float64>(channels_last, aligned);
      default: return kernel_for<D, Type::float32>(channels_last, aligned);
    }
  });
}

// Random words and nothing else: each thread makes blocks, and writes one word that depends on all of them.
__global__ void __launch_bounds__(kMostThreads)
    philox_kernel(const __grid_constant__ Key key, int64_t blocks, uint32_t* out) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  uint32_t all = 0;
  for (int64_t b = thread; b < blocks; b += threads) {
    const auto w = philox<uint64_t>(b, 1, 2, 3, key);
    all ^= static_cast<uint32_t>(w.a ^ w.b ^ w.c ^ w.d);
  }
  out[thread] = all;
}

}  // namespace

cudaError_t perturb(const PerturbJob& job, cudaStream_t stream) {
  const PerturbGrid g = make_grid(job);
  const auto kernel = kernel_for(job.noise.draw, job.type, g.job.channels_last, g.aligned);
  kernel<<<grid_of(g.pieces, job.batch), g.threads, g.shared, stream>>>(g);
  return cudaGetLastError();
}

cudaError_t load_perturb() {
  cudaFuncAttributes attributes;
  for (const Draw draw : {RSFAST_DRAWS(RSFAST_DRAW_VALUE)})
    for (const Type type : {Type::float32, Type::float16, Type::bfloat16, Type::float64})
      for (const bool channels_last : {false, true})
        for (const bool aligned : {false, true})
          if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel_for(draw, type, channels_last, aligned)))
            return error;
  return cudaSuccess;
}

cudaError_t philox_floor(uint64_t seed, int64_t blocks, uint32_t* out, cudaStream_t stream) {
  philox_kernel<<<kFloorThreads / kMostThreads, kMostThreads, 0, stream>>>(make_key(seed), blocks, out);
  return cudaGetLastError();
}

}  // namespace rsfast
