// One score of accumulate: logits to integers. All sums are of 64-bit integers, in units of 2^-40 within a row and of
// 2^-30 in the Tally, so that no order of reduction shows. K up to 2^20 classes.
#pragma once

#include "jobs.h"
#include "lanes.h"

namespace rsfast {

enum class HeadKind : int { softmax, sparsemax, clipped };  // `kind` of a head in rsfast/heads

RSFAST_FN HeadKind kind_of(const HeadParameters& head) { return static_cast<HeadKind>(static_cast<int>(head.kind)); }

constexpr uint64_t kOne = uint64_t{1} << 40;  // 1 within a row
constexpr float kNegligible = -28.0f;         // exp of less is below 2^-40 and counts as 0
constexpr int kBins = 128;                    // of a histogram of scores

// A row of logits votes, and has scores, if none is NaN and the maximum is finite: logits of -inf are classes that are not
// in use. Their distance to the maximum is -inf, and every score of that is 0.
template <class F>
RSFAST_FN auto is_finite(F maximum) {
  return maximum - maximum == 0.0f;
}

// exp(a) for kNegligible <= a <= 0 as mantissa * 2^(-24 - shift), to about 1 ulp. exp(0) is exactly 1.
template <class F, class I>
RSFAST_FN void exp_parts(F a, I& mantissa, I& shift) {
  const F shifted = fused(a, F{} + 0x1.715476p+0f, F{} + 12582912.0f);  // a / ln 2, rounded to the last place
  const F n = shifted - 12582912.0f;
  F r = fused(n, F{} + -0x1.62e4p-1f, a);
  r = fused(n, F{} + -0x1.7f7d1cp-20f, r);
  F p = fused(r, F{} + 0x1.6a25cep-10f, F{} + 0x1.1239dep-7f);
  p = fused(p, r, F{} + 0x1.5558f0p-5f);
  p = fused(p, r, F{} + 0x1.555492p-3f);
  p = fused(p, r, F{} + 0x1.fffffcp-2f);
  p = fused(p, r * r, r) + 1.0f;  // in [0.7, 1.42]
  mantissa = to_int(p * 0x1p24f);
  shift = (I)(0x4B400000u - as_bits(shifted));
}

// The same in units of 2^-40.
template <class W>
RSFAST_FN W exp_units(W mantissa, W shift) {
  return (mantissa << 16) >> shift;
}

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
RSFAST_FN float read_logit(const T* from) {
  return static_cast<float>(*from);
}
template <class B>
RSFAST_FN auto float_of_half(B bits) {
  const B sign = (bits & 0x8000u) << 16, rest = bits & 0x7FFFu, special = 0x7F800000u | (rest & 0x3FFu) << 13;
  // The exponent is moved by a product with a power of 2, which is exact and takes subnormals along.
  const B finite = as_bits(as_float(rest << 13) * 0x1p112f);
  return as_float(sign | (rest >= 0x7C00u ? special : finite));
}
RSFAST_FN float read_logit(const Float16* from) { return float_of_half(static_cast<uint32_t>(from->bits)); }
RSFAST_FN float read_logit(const BFloat16* from) { return as_float(static_cast<uint32_t>(from->bits) << 16); }

// Softmax. `total` is the sum of the row's exp_units, at least kOne since the largest of them is. Scores are rounded down
// and sum to at most 2^30: each is at most (units * 2^30) / total.

template <class W>
RSFAST_FN W softmax_factor(W total) {
  return divide(W{} + (uint64_t{1} << 63), (total + 255) >> 8);
}

template <class W>
RSFAST_FN W softmax_score(W units, W factor) {
  return multiply_wide(units >> 9, factor) >> 32;
}

// Sparsemax. Units of 1 + a, 0 where a <= -1. The threshold is found by Michelot's iteration (1986): from all positive
// units, drop those not above floor((total - kOne) / count) until none is dropped.

template <class F>
RSFAST_FN auto sparsemax_mantissa(F a) {
  const F b = a + 1.0f;
  return to_int((b > 0.0f ? b : F{}) * 0x1p24f);
}

template <class W>
RSFAST_FN W sparsemax_floor(W total, W count) {
  return divide(total - kOne, count);
}

template <class W>
RSFAST_FN W sparsemax_ceiling(W total, W count) {
  return divide(total - kOne + count - 1, count);
}

// ClippedLogits.

template <class F>
RSFAST_FN auto clipped_score(F logit, const HeadParameters& head) {
  F s = logit < head.low ? F{} + head.low : logit;
  s = s > head.high ? F{} + head.high : s;
  s = (s - head.low) * head.scale;
  return to_int((s > 1.0f ? F{} + 1.0f : s) * 0x1p30f);
}

// Every head whose score of a class is a function of its logit alone: its kinds are all that have no case in the loops of
// cpu/accumulate.cpp and cuda/accumulate.h. F is a lane or a vector of them.
template <class F>
RSFAST_FN auto pointwise_score(F logit, const HeadParameters& head) {
  switch (kind_of(head)) {
    case HeadKind::clipped: return clipped_score(logit, head);
    default: return to_int(F{});
  }
}

// The square of a score, rounded up.
template <class W>
RSFAST_FN W square_score(W score) {
  return (multiply_wide(score, score) + 0x3FFFFFFFu) >> 30;
}

// The bin of a score. Half of the bins are counted from 0, half from 1: exponent and two bits of mantissa of the distance
// to the nearer of the two, in units of 2^-18, of which the first four have a bin each.
template <class I>
RSFAST_FN I score_bin(I score) {
  constexpr int32_t half = 1 << 29;
  I units = score < half ? score : 2 * half - score;
  units = (units < half ? units : I{} + (half - 1)) >> 12;
  const I bin = units < 4 ? units : (I)(as_bits(to_float(units)) >> 21) - 512;
  return score < half ? bin : kBins - 1 - bin;
}

}  // namespace rsfast
