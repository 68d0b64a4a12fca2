// One element of perturb: what happens to x and its noise, and how the result is rounded.
#pragma once

#include "jobs.h"
#include "noise.h"

namespace rsfast {

// Counter words 1 to 3 of a row, or of a row a lane; word 0 is the block, element / 4.
template <class W>
struct RowCounters {
  W sample_low, input_id, stream_and_sample_high;
};
using RowCounter = RowCounters<uint64_t>;

RSFAST_FN RowCounter row_counter(int64_t sample, int64_t input_id, int stream) {
  return {static_cast<uint32_t>(sample), static_cast<uint32_t>(input_id),
          static_cast<uint32_t>(stream) << 24 | static_cast<uint32_t>(sample >> 32)};
}

// That of a draw. Words that are the same for all samples, inputs and streams are those of a stream that nothing else uses.
template <Draw D>
RSFAST_FN RowCounter row_counter(DrawIs<D> draw, const NoiseParameters& noise, int64_t sample, int64_t input_id,
                                 int stream) {
  constexpr int kFixedStream = 6;
  return words_are_fixed(draw, noise) ? row_counter(0, 0, kFixedStream) : row_counter(sample, input_id, stream);
}

// That of the words that Source.more makes: no stream has the top bit.
template <class W>
RSFAST_FN RowCounters<W> more_words(const RowCounters<W>& row) {
  return {row.sample_low, row.input_id, row.stream_and_sample_high | 0x80000000u};
}

template <class F>
RSFAST_FN F clamped(F value, float low, float high) {  // NaN stays NaN
  value = value < low ? F{} + low : value;
  return value > high ? F{} + high : value;
}

// x with its noise, before scale and shift. clamp: job.clamp, where a kernel is not compiled for one of the two.
template <Draw D, class F>
RSFAST_FN F noisy(DrawIs<D> draw, const PerturbJob& job, bool clamp, F z, F noise_scale, F x) {
  const F y = combined(draw, job.noise, z, noise_scale, x);
  return clamp ? clamped(y, job.clamp_low, job.clamp_high) : y;
}

// Rounding to nearest even, on the bits of a float; the result is in the low 16 bits.

template <class B>
RSFAST_FN B to_bfloat16(B bits) {
  const B rounded = (bits + (((bits >> 16) & 1u) + 0x7FFFu)) >> 16;
  return (bits & 0x7FFFFFFFu) > 0x7F800000u ? (bits >> 16) | 0x40u : rounded;
}

template <class B>
RSFAST_FN B to_float16(B bits) {
  const B magnitude = bits & 0x7FFFFFFFu;
  const B normal = (magnitude + (((magnitude >> 13) & 1u) + 0xC8000FFFu)) >> 13;  // exponent bias 127 to 15
  // Below 2^-14 the sum with 1/2 has the last place of a float16 subnormal, and rounds there.
  const B small = as_bits(as_float(magnitude) + 0.5f) - 0x3F000000u;
  const B large = magnitude > 0x7F800000u ? ((magnitude >> 13) & 0x3FFu) | 0x7E00u : B{} + 0x7C00u;
  const B result = magnitude >= 0x477FF000u ? large : magnitude < 0x38800000u ? small : normal;
  return result | ((bits >> 16) & 0x8000u);
}

}  // namespace rsfast
