// What a draw makes of given words, on a GPU: for tests, and alike for CUDA and for the tests' host loop.
#pragma once

#include "../noise.h"
#include "block.h"

namespace rsfast {

constexpr int kWordsThreads = 256;

// Block x makes the noise of four words a thread, of `count`, a multiple of four. For draws that take nothing but words.
template <Draw D>
RSFAST_KERNEL_FN void noise_of_words(const Block& block, const uint32_t* words, int64_t count, float* out) {
  block.apart([&](int thread) {
    const int64_t first = 4 * (block.x * block.threads + thread);
    if (first >= count) return;
    const NoiseParameters none = {};
    const auto no_more = [](uint32_t*) {};
    uint32_t w[4];
    float z[4];
    for (int i = 0; i < 4; ++i) w[i] = words[first + i];
    standard_noise<float, int32_t>(DrawIs<D>{}, source_of(w, no_more, none, 0u), z);
    for (int i = 0; i < 4; ++i) out[first + i] = z[i];
  });
}

// f(DrawIs<D>) for the draws that take nothing but words.
template <class F>
static inline auto with_draw_of_words(Draw draw, const F& f) {
  switch (draw) {
    case Draw::laplace: return f(DrawIs<Draw::laplace>{});
    case Draw::uniform: return f(DrawIs<Draw::uniform>{});
    case Draw::mask: return f(DrawIs<Draw::mask>{});
    default: return f(DrawIs<Draw::gaussian>{});  // no other is let through by rsfast/ops
  }
}

}  // namespace rsfast
