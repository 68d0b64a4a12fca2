// The kernels on given words, and their launch.
#include "kernels.h"
#include "words.h"

namespace rsfast {
namespace {

template <Draw D>
__global__ void __launch_bounds__(kWordsThreads) words_kernel(const uint32_t* words, int64_t count, float* out) {
  noise_of_words<D>(this_block(), words, count, out);
}

auto kernel_for(Draw draw) {
  return with_draw_of_words(draw, [](auto is) { return words_kernel<decltype(is)::draw>; });
}

}  // namespace

cudaError_t noise_of_words(int draw, const uint32_t* words, int64_t count, float* out, cudaStream_t stream) {
  const int64_t blocks = blocks_of(count, 4 * kWordsThreads);
  kernel_for(static_cast<Draw>(draw))<<<grid_of(blocks, 1), kWordsThreads, 0, stream>>>(words, count, out);
  return cudaGetLastError();
}

}  // namespace rsfast
