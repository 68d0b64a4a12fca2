// The maps from random words to noise values. A change of any bit here is a new stream version (rsfast/noise.py).
#pragma once

#include "lanes.h"

namespace rsfast {

// ln((word + 1/2) / 2^32) = ln(1 + f) + e ln 2, with f in [-1/4, 1/2] and e an integer. Near 1, where the logarithm is
// small, the distance to 1 is formed from the complement of the word, and is exact.
template <class F, class B>
RSFAST_FN void reduce(B word, F& f, F& e) {
  const auto near_one = word > 0xBFFFFFFFu;
  const F value = (to_float(near_one ? ~word : word) + 0.5f) * 0x1p-32f;
  const B bits = as_bits(value) - 0x3F400000u;
  const F mantissa = as_float((bits & 0x007FFFFFu) + 0x3F400000u);  // in [3/4, 3/2)
  // The exponent, from -33 to -1, made a float without sign trouble: 2^23 + 224 + exponent.
  const F exponent = as_float(((bits + 0x70000000u) >> 23) | 0x4B000000u) - (8388608.0f + 224.0f);
  f = near_one ? -value : mantissa - 1.0f;
  e = near_one ? F{} : exponent;
}

#if defined(__AVX512F__)
RSFAST_FN void reduce(Bits word, Floats& f, Floats& e) {
  const __m512i w = reinterpret_cast<__m512i>(word);
  const __mmask16 near_one = _mm512_cmpgt_epu32_mask(w, _mm512_set1_epi32(0xBFFFFFFF));
  const __m512i flipped = _mm512_mask_xor_epi32(w, near_one, w, _mm512_set1_epi32(-1));
  const Floats value = (to_float(reinterpret_cast<Bits>(flipped)) + 0.5f) * 0x1p-32f;
  const Floats mantissa = _mm512_getmant_ps(value, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
  f = _mm512_mask_sub_ps(mantissa - 1.0f, near_one, Floats{}, value);
  e = _mm512_maskz_sub_ps(~near_one, _mm512_getexp_ps(value), _mm512_getexp_ps(mantissa));
}
#endif

// -2 ln((word + 1/2) / 2^32), positive, to about 1 ulp.
template <class F, class B>
RSFAST_FN F minus_two_log(B word) {
  F f, e;
  reduce(word, f, e);
  F q = fused(f, F{} + -0x1.ca09bep-4f, 0x1.f64a52p-3f);
  q = fused(q, f, -0x1.334838p-2f);
  q = fused(q, f, 0x1.57d2cap-2f);
  q = fused(q, f, -0x1.99026ep-2f);
  q = fused(q, f, 0x1.ffe9b4p-2f);
  q = fused(q, f, -0x1.555694p-1f);
  q = fused(q, f, 1.0f);
  q = fused(q, f, -2.0f);
  return fused(q, f, e * -0x1.62e43p+0f);
}

// Box and Muller 1958: two words to two independent standard normals, r cos(theta) and r sin(theta), with
// r^2 = -2 ln((radius + 1/2) / 2^32) and theta = 2 pi angle / 2^32. The quadrant comes off the angle as an integer, and what
// is left is x quarter pi, with x in [-1, 1).
template <class F, class B, class I>
RSFAST_FN void box_muller(B radius, B angle, F& z0, F& z1) {
  const F r = root(minus_two_log<F>(radius));
  const F x = to_float((I)(angle << 2)) * 0x1p-31f;
  const B turned = angle + 0x20000000u;
  const F square = x * x;
  F s = fused(square, F{} + -0x1.2d92dep-15f, 0x1.465e9p-9f);
  s = fused(s, square, -0x1.4abbb8p-4f);
  s = fused(s, square, -0x1.a34d4cp-26f);  // what pi/4 has beyond float32
  s = fused(x, 0x1.921fb6p-1f, s * x);
  F c = fused(square, F{} + 0x1.d9bf06p-19f, -0x1.55c58cp-12f);
  c = fused(c, square, 0x1.03c1dcp-6f);
  c = fused(c, square, -0x1.3bd3ccp-2f);
  c = fused(c, square, 1.0f);
  const auto odd_quadrant = (turned & 0x40000000u) != 0;
  const F cosine = odd_quadrant ? s : c, sine = odd_quadrant ? c : s;
  z0 = as_float(as_bits(r * cosine) ^ ((turned + 0x40000000u) & 0x80000000u));
  z1 = as_float(as_bits(r * sine) ^ (turned & 0x80000000u));
}

}  // namespace rsfast
