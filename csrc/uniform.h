// Conversions of random words to uniform numbers, the layer between the generator (philox.h) and the noises (noise.h). Each
// states its range. The complement of a number near 1 is kept in place of the number: it is exact, and so is a logarithm
// there.
#pragma once

#include "lanes.h"

namespace rsfast {

// u in (0, 1): `value` is u rounded to float, or 1 - u rounded where u is 3/4 or more and `near_one` says so.
template <class F, class M>
struct Uniform {
  F value;
  M near_one;
};

template <class F, class M>
RSFAST_FN Uniform<F, M> make_uniform(F value, M near_one) {
  return {value, near_one};
}

template <class B>
RSFAST_FN auto is_near_one(B word) {
  return word > 0xBFFFFFFFu;
}

template <class M, class B>
RSFAST_FN B complement_where(M mask, B word) {
  return mask ? ~word : word;
}

#if defined(__AVX512F__)
RSFAST_FN __mmask16 is_near_one(Bits word) {
  return _mm512_cmpgt_epu32_mask(reinterpret_cast<__m512i>(word), _mm512_set1_epi32(0xBFFFFFFF));
}

RSFAST_FN Bits complement_where(__mmask16 mask, Bits word) {
  const __m512i w = reinterpret_cast<__m512i>(word);
  return reinterpret_cast<Bits>(_mm512_mask_xor_epi32(w, mask, w, _mm512_set1_epi32(-1)));
}
#endif

// (value + 1/2) / 2^32, rounded once either way; one lane has the fused operation as an instruction, or nothing to lose.
template <class F>
RSFAST_FN F centred(F value) {
  return (value + 0.5f) * 0x1p-32f;
}
RSFAST_FN float centred(float value) { return fused(value, 0x1p-32f, 0x1p-33f); }

// (word + 1/2) / 2^32: from 2^-33 to 1 - 2^-33, every half step of 2^-32.
template <class F, class B>
RSFAST_FN auto centred_uniform(B word) {
  const auto near_one = is_near_one(word);
  return make_uniform<F>(centred(to_float(complement_where(near_one, word))), near_one);
}

// (2 k + 1) / 2^32, k the low 31 bits of the word: from 2^-32 to 1 - 2^-32, every half step of 2^-31. The top bit is left
// over.
template <class F, class B>
RSFAST_FN auto centred_uniform_31(B word) {
  const B doubled = word << 1;
  const auto near_one = is_near_one(doubled);
  return make_uniform<F>(to_float(complement_where(near_one, doubled) | 1u) * 0x1p-32f, near_one);
}

}  // namespace rsfast
