// The arithmetic that every kernel is written in: one lane is a float, an int or a 64-bit word, and every function here
// works alike on one lane (CUDA thread, host scalar) and on a vector of them (CPU). All of it is exactly rounded IEEE
// arithmetic or integer arithmetic, so a template gives the same bits whatever it is instantiated with.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define RSFAST_FN static __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define RSFAST_FN static inline __attribute__((always_inline))
#else
#error "rsfast needs GCC, Clang or nvcc: its CPU kernels use their vector types"
#endif

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace rsfast {

// One lane.

RSFAST_FN float as_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

RSFAST_FN uint32_t as_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

RSFAST_FN float to_float(int32_t value) { return static_cast<float>(value); }
RSFAST_FN float to_float(uint32_t value) { return static_cast<float>(value); }
RSFAST_FN int32_t to_int(float value) { return static_cast<int32_t>(value); }
RSFAST_FN int32_t as_signed(uint32_t bits) { return static_cast<int32_t>(bits); }

// a * b + c with one rounding.
RSFAST_FN float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

// The square root of a value in [2^-64, 2^64], from its reciprocal to within 2^-22.9: one step of Newton's. Tests prove it
// correctly rounded for every such value and reciprocal.
RSFAST_FN float corrected_root(float value, float reciprocal) {
  const float near = value * reciprocal;
  return fused(fused(-near, near, value), reciprocal * 0.5f, near);
}

// The square root, correctly rounded; on a GPU of values in [2^-64, 2^64] only.
RSFAST_FN float root(float value) {
#if defined(__CUDA_ARCH__)
  float reciprocal;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(value));
  return corrected_root(value, reciprocal);
#else
  return __builtin_sqrtf(value);
#endif
}

// One of two, by one bit of a word.
template <class B, class F>
RSFAST_FN F where_bit(B word, uint32_t bit, F set, F clear) {
#if defined(__CUDA_ARCH__)
  // From C++ nvcc makes three instructions of the test, and one of this.
  float chosen;
  asm("{.reg .pred p; .reg .b32 t; and.b32 t, %1, %2; setp.ne.u32 p, t, 0; selp.f32 %0, %3, %4, p;}"
      : "=f"(chosen)
      : "r"(word), "r"(bit), "f"(set), "f"(clear));
  return chosen;
#else
  return (word & bit) != 0 ? set : clear;
#endif
}

RSFAST_FN uint64_t divide(uint64_t a, uint64_t b) { return a / b; }

// Whether any lane of a is that of b.
RSFAST_FN bool any_equal(int32_t a, int32_t b) { return a == b; }

// The two of a row of a table [rows, 2].
RSFAST_FN void look_up(const int32_t* table, int32_t row, int32_t& first, int32_t& second) {
  first = table[2 * row], second = table[2 * row + 1];
}

// The full product of the low halves.
RSFAST_FN uint64_t multiply_wide(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  // In C++ it would become a 64-bit product, which is more instructions.
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(static_cast<uint32_t>(a)), "r"(static_cast<uint32_t>(b)));
  return product;
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

#if !defined(__CUDACC__)

// A vector of lanes, as wide as the instruction set that this file is compiled for.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint64_t Wides __attribute__((vector_size(kLanes * 4)));  // kLanes / 2 lanes of 64 bits

template <class V, class T>
RSFAST_FN V load(const T* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <class V, class T>
RSFAST_FN void store(T* to, V value) {
  __builtin_memcpy(to, &value, sizeof value);
}

RSFAST_FN Floats as_float(Bits bits) { return reinterpret_cast<Floats>(bits); }
RSFAST_FN Bits as_bits(Floats value) { return reinterpret_cast<Bits>(value); }
RSFAST_FN Floats to_float(Ints value) { return __builtin_convertvector(value, Floats); }
RSFAST_FN Ints to_int(Floats value) { return __builtin_convertvector(value, Ints); }
RSFAST_FN Ints as_signed(Bits bits) { return reinterpret_cast<Ints>(bits); }

RSFAST_FN Floats to_float(Bits value) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_cvtepu32_ps(reinterpret_cast<__m512i>(value)));
#else
  // 2^39 + 65536 high and 2^23 + low are exact, so is the difference; only the last sum rounds.
  const Floats high = as_float((value >> 16) | 0x53000000u), low = as_float((value & 0xFFFFu) | 0x4B000000u);
  return (high - 549764202496.0f) + low;
#endif
}

RSFAST_FN Floats root(Floats value) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(value);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(value);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(value);
#else
  for (int i = 0; i < kLanes; ++i) value[i] = root(value[i]);
  return value;
#endif
}

RSFAST_FN Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_FEATURE_FMA)
  for (int i = 0; i < kLanes; ++i) c[i] = fused(a[i], b[i], c[i]);
  return c;
#else
  // Without the instruction: the product is exact in double, the sum is rounded to odd, and a value rounded to odd with
  // more than twice the bits rounds to float as the exact sum would (Boldo and Melquiond 2008).
  typedef double Doubles __attribute__((vector_size(kLanes * 8)));
  typedef int64_t Longs __attribute__((vector_size(kLanes * 8)));
  const Doubles product = __builtin_convertvector(a, Doubles) * __builtin_convertvector(b, Doubles);
  const Doubles addend = __builtin_convertvector(c, Doubles), sum = product + addend, shadow = sum - product;
  const Doubles error = (product - (sum - shadow)) + (addend - shadow);
  const Longs bits = reinterpret_cast<Longs>(sum), above = error > 0.0, below = error < 0.0, positive = sum > 0.0;
  const Longs inexact_and_even = (above | below) & ~bits & 1;
  const Longs toward_zero = above ^ positive;  // all ones, that is -1, or 0
  const Longs odd = bits + ((inexact_and_even ^ toward_zero) - toward_zero);
  return __builtin_convertvector(reinterpret_cast<Doubles>(odd), Floats);
#endif
}

RSFAST_FN Floats fused(Floats a, Floats b, float c) { return fused(a, b, Floats{} + c); }
RSFAST_FN Floats fused(Floats a, float b, Floats c) { return fused(a, Floats{} + b, c); }

RSFAST_FN bool any_equal(Ints a, Ints b) {
#if defined(__AVX512F__)
  return _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8(reinterpret_cast<__m256i>(a == b)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8(reinterpret_cast<__m128i>(a == b)) != 0;
#else
  bool any = false;
  for (int i = 0; i < kLanes; ++i) any |= a[i] == b[i];
  return any;
#endif
}

RSFAST_FN void look_up(const int32_t* table, Ints row, Ints& first, Ints& second) {
#if defined(__AVX512F__)
  const __m512i rows = reinterpret_cast<__m512i>(row);
  first = reinterpret_cast<Ints>(_mm512_i32gather_epi32(rows, table, 8));
  second = reinterpret_cast<Ints>(_mm512_i32gather_epi32(rows, table + 1, 8));
#elif defined(__AVX2__)
  const __m256i rows = reinterpret_cast<__m256i>(row);
  first = reinterpret_cast<Ints>(_mm256_i32gather_epi32(table, rows, 8));
  second = reinterpret_cast<Ints>(_mm256_i32gather_epi32(table + 1, rows, 8));
#else
  for (int i = 0; i < kLanes; ++i) first[i] = table[2 * row[i]], second[i] = table[2 * row[i] + 1];
#endif
}

RSFAST_FN Wides multiply_wide(Wides a, Wides b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Wides>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Wides>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<Wides>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// floor(a / b) for b > 0 and quotients below 2^50: the double quotient is off by less than 1, which the remainder tells.
RSFAST_FN Wides divide(Wides a, Wides b) {
  typedef double Doubles __attribute__((vector_size(kLanes * 4)));
  typedef int64_t Longs __attribute__((vector_size(kLanes * 4)));
  const Wides quotient =
      __builtin_convertvector(__builtin_convertvector(a, Doubles) / __builtin_convertvector(b, Doubles), Wides);
  const Longs rest = reinterpret_cast<Longs>(a - quotient * b);
  const Longs above = rest < 0, below = rest >= reinterpret_cast<Longs>(b);  // all ones, that is -1, where true
  return quotient + reinterpret_cast<Wides>(above) - reinterpret_cast<Wides>(below);
}

RSFAST_FN Wides multiply_wide(uint64_t a, Wides b) { return multiply_wide(Wides{} + a, b); }

#endif

}  // namespace rsfast
