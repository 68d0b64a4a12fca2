// The draws: maps from the four random words of a Philox block to the standard noise of the block's four elements, and how
// that noise and x are combined. A change of any bit here is a new stream version (rsfast/noise/streams.py).
#pragma once

#include "jobs.h"
#include "uniform.h"

namespace rsfast {

// Every draw, by the name that rsfast/noise gives it. Each has a function standard_noise(DrawIs<Draw::name>, source, z).
#define RSFAST_DRAWS(each) each(gaussian) each(laplace) each(uniform) each(grid_gaussian) each(mask) each(splitting)

#define RSFAST_DRAW_ENUMERATOR(name) name,
#define RSFAST_DRAW_NAME(name) #name,
#define RSFAST_DRAW_VALUE(name) Draw::name,
#define RSFAST_DRAW_CASE(name) \
  case Draw::name: return f(DrawIs<Draw::name>{});

enum class Draw : int { RSFAST_DRAWS(RSFAST_DRAW_ENUMERATOR) };

template <Draw D>
struct DrawIs {
  static constexpr Draw draw = D;
};

// f(DrawIs<D>) for the draw that is known when the program runs: kernels are compiled once for each.
template <class F>
static inline auto with_draw(Draw draw, const F& f) {
  switch (draw) { RSFAST_DRAWS(RSFAST_DRAW_CASE) }
  return f(DrawIs<Draw::gaussian>{});  // no other is let through by rsfast/ops
}

// What a draw makes the noise of a block from.
template <class B, class More>
struct Source {
  const B* words;    // [4]
  const More& more;  // more(w) makes four other words of the same block, for draws that need 64 bits an element
  const NoiseParameters& noise;
  B turn;  // turn_of each lane's row
};

template <class B, class More>
RSFAST_FN Source<B, More> source_of(const B* words, const More& more, const NoiseParameters& noise, B turn) {
  return {words, more, noise, turn};
}

// What a draw takes of the sample itself, beside the words: most take nothing.
template <Draw D>
RSFAST_FN uint32_t turn_of(DrawIs<D>, const NoiseParameters&, int64_t) {
  return 0;
}

// x with standard noise z: what most draws do is add it. scale: noise.each of the element, or the first scalar.
template <Draw D, class F>
RSFAST_FN F combined(DrawIs<D>, const NoiseParameters&, F z, F scale, F x) {
  return fused(z, scale, x);
}

// A mask keeps x, or hides it behind the fill. scalars: the chance of keeping, a multiple of 2^-24, and the fill.
template <class F>
RSFAST_FN F combined(DrawIs<Draw::mask>, const NoiseParameters& noise, F z, F, F x) {
  return z < noise.scalars[0] ? x : F{} + noise.scalars[1];
}

// Ties to even; of values of at most 2^22.
template <class F>
RSFAST_FN F nearest_integer(F value) {
  return (value + 12582912.0f) - 12582912.0f;
}

// dividend / divisor for the reciprocal rounded: the product is corrected by its error (Markstein 1990). It is correctly
// rounded for the dividends that tests prove it of. A dividend of 0 gives +0.
template <class F>
RSFAST_FN F corrected_quotient(F dividend, float divisor, float reciprocal) {
  const F quotient = dividend * reciprocal;
  return fused(fused(quotient, F{} - divisor, dividend), F{} + reciprocal, quotient);
}

// (round(255 x) + k) / 255, correctly rounded: exact integers of less than 2^24, and their quotient.
template <class F>
RSFAST_FN F combined(DrawIs<Draw::grid_gaussian>, const NoiseParameters&, F k, F, F x) {
  return corrected_quotient(nearest_integer(x * 255.0f) + k, 255.0f, 1.0f / 255.0f);
}

// A draw whose words do not depend on sample, input and stream takes those of one row (perturb.h).
template <Draw D>
RSFAST_FN bool words_are_fixed(DrawIs<D>, const NoiseParameters&) {
  return false;
}

// Splitting noise cuts the line into cells and puts the centre of x's cell, cut to [0, 1], in place of x.
//
// Units are 1 if random; x is then as it is given. If deterministic they are the levels of the grid, and x * units lies
// within 2^-7 of an integer. z holds, in its high half, one of `places` along a cell, and in its low half where in that
// place the cells' edges are: (place + k * places + low / 2^16) * step for all integers k, rounded once (and low's share by
// 2^-40 of a cell before). x is in the cell k if edge(k) < x <= edge(k + 1).
struct SplittingParameters {
  float places, step, inverse_width, units, half_unit;
};

RSFAST_FN SplittingParameters splitting_parameters(const NoiseParameters& noise) {
  const float* s = noise.scalars;
  return {s[0] > 0.0f ? s[0] : 65536.0f, s[1], s[2], s[3], s[4]};
}

RSFAST_FN bool words_are_fixed(DrawIs<Draw::splitting>, const NoiseParameters& noise) { return noise.scalars[0] > 0.0f; }

RSFAST_FN uint32_t turn_of(DrawIs<Draw::splitting>, const NoiseParameters& noise, int64_t sample) {
  const uint32_t count = static_cast<uint32_t>(noise.scalars[0]);
  return count ? static_cast<uint32_t>(sample % count) : 0;
}

// An integer below 2^23, exactly.
template <class B>
RSFAST_FN auto small_to_float(B value) {
  return as_float(value | 0x4B000000u) - 8388608.0f;
}

template <class F>
RSFAST_FN F edge(const SplittingParameters& p, F place, F low, F k) {
  return fused(fused(k, F{} + p.places, place), F{} + p.step, low);
}

template <class F>
RSFAST_FN F combined(DrawIs<Draw::splitting>, const NoiseParameters& noise, F z, F, F x) {
  const SplittingParameters p = splitting_parameters(noise);
  const auto bits = as_bits(z);
  const F place = small_to_float(bits >> 16), low = small_to_float(bits & 0xFFFFu) * (p.step * 0x1p-16f);
  // Other edges than the nearest lie half a cell away: whether that one is below x tells the cell.
  const F at = x * p.units;
  const F k = nearest_integer((at - fused(place, F{} + p.step, low)) * p.inverse_width);
  const F nearest = edge(p, place, low, k);
  const auto below = nearest < at;
  const F other = edge(p, place, low, below ? k + 1.0f : k - 1.0f);
  const F first = below ? nearest : other, last = below ? other : nearest;
  const F sum = (first < 0.0f ? F{} : first) + (last > p.units ? F{} + p.units : last);
  return corrected_quotient(sum, 2.0f * p.units, p.half_unit);
}

// ln(u) = ln(1 + f) + k ln 2, with f in [-1/4, 1/2] and k an integer. e: step k, rounded.
template <class F, class M>
RSFAST_FN void reduce(Uniform<F, M> u, float step, F& f, F& e) {
  const auto bits = as_bits(u.value);
  const auto exponent = (bits - 0x3F400000u) & 0xFF800000u;  // k 2^23
  f = u.near_one ? -u.value : as_float(bits - exponent) - 1.0f;
  e = u.near_one ? F{} : to_float(as_signed(exponent)) * (step * 0x1p-23f);
}

#if defined(__AVX512F__)
RSFAST_FN void reduce(Uniform<Floats, __mmask16> u, float step, Floats& f, Floats& e) {
  const Floats mantissa = _mm512_getmant_ps(u.value, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
  f = _mm512_mask_sub_ps(mantissa - 1.0f, u.near_one, Floats{}, u.value);
  e = Floats(_mm512_maskz_sub_ps(~u.near_one, _mm512_getexp_ps(u.value), _mm512_getexp_ps(mantissa))) * step;
}
#endif

// -factor ln(u), positive, to about 1 ulp. A factor of 1 has the bits of one of 2, halved: so has every step.
template <class F, class M>
RSFAST_FN F minus_log(Uniform<F, M> u, float factor) {
  const float by = factor * 0.5f;
  F f, e;
  reduce(u, by * -0x1.62e43p+0f, f, e);
  F q = fused(f, F{} + by * -0x1.ca09bep-4f, by * 0x1.f64a52p-3f);
  q = fused(q, f, by * -0x1.334838p-2f);
  q = fused(q, f, by * 0x1.57d2cap-2f);
  q = fused(q, f, by * -0x1.99026ep-2f);
  q = fused(q, f, by * 0x1.ffe9b4p-2f);
  q = fused(q, f, by * -0x1.555694p-1f);
  q = fused(q, f, by);
  q = fused(q, f, by * -2.0f);
  return fused(q, f, e);
}

// Box and Muller 1958: two words to two independent standard normals, r cos(theta) and r sin(theta), with
// r^2 = -2 ln((radius + 1/2) / 2^32) and theta = 2 pi angle / 2^32. The quadrant comes off the angle as an integer, and what
// is left is x quarter pi, with x in [-1, 1).
template <class F, class B, class I>
RSFAST_FN void box_muller(B radius, B angle, F& z0, F& z1) {
  const F r = root(minus_log(centred_uniform<F>(radius), 2.0f));
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
  const F side = as_float(as_bits(r) ^ (turned & 0x80000000u));  // the sign is that of the half turn
  z0 = side * where_bit(turned, 0x40000000u, -s, c);
  z1 = side * where_bit(turned, 0x40000000u, c, s);
}

// Two normals of each two words. |z| is at most 6.77; the chance of more is 1.4e-11.
template <class F, class I, class B, class More>
RSFAST_FN void standard_noise(DrawIs<Draw::gaussian>, const Source<B, More>& from, F* z) {
  box_muller<F, B, I>(from.words[0], from.words[1], z[0], z[1]);
  box_muller<F, B, I>(from.words[2], from.words[3], z[2], z[3]);
}

// Laplace noise of scale 1, one element a word: |z| = -ln((2 k + 1) / 2^32), k the low 31 bits, negative if the top bit is
// set. So P(|z| > t) is within 2^-32 of exp(-t) for every t. |z| is at most 32 ln 2 = 22.18, and the chance of more would be
// 2^-32; at that end values lie ln 3 and less apart, near 0 they lie 2^-31 apart. Exactly symmetric.
template <class F, class I, class B, class More>
RSFAST_FN void standard_noise(DrawIs<Draw::laplace>, const Source<B, More>& from, F* z) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const F magnitude = minus_log(centred_uniform_31<F>(from.words[i]), 1.0f);
    z[i] = as_float(as_bits(magnitude) | (from.words[i] & 0x80000000u));
  }
}

// Uniform noise on [-1, 1], one element a word: |z| = (2 k + 1) / 2^32 rounded to float, k the low 31 bits, negative if the
// top bit is set. Exactly symmetric; the rounding moves a value by at most 2^-25, and the least magnitude is 2^-32.
template <class F, class I, class B, class More>
RSFAST_FN void standard_noise(DrawIs<Draw::uniform>, const Source<B, More>& from, F* z) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const F magnitude = to_float((from.words[i] << 1) | 1u) * 0x1p-32f;
    z[i] = as_float(as_bits(magnitude) | (from.words[i] & 0x80000000u));
  }
}

// What a mask compares with the chance of keeping: the top 24 bits of the word, times 2^-24. So every value is exact, and
// equally likely. In [0, 1).
template <class F, class I, class B, class More>
RSFAST_FN void standard_noise(DrawIs<Draw::mask>, const Source<B, More>& from, F* z) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) z[i] = to_float((I)(from.words[i] >> 8)) * 0x1p-24f;
}

// The word of an element that shares one with all elements of its group (noise.each has the group's number g): word g % 4 of
// block g / 4, whose words these are.
template <class B>
RSFAST_FN B word_of_group(B group, const B* words) {
  const auto odd = (group & 1u) != 0;
  const B low = odd ? words[1] : words[0], high = odd ? words[3] : words[2];
  return (group & 2u) != 0 ? high : low;
}

// The levels of lanes whose high word is that of a threshold: it takes their low words, and one threshold after the other.
// With n thresholds about n of 2^31 words are such.
template <class B, class More, class I>
RSFAST_FN void compare_low_words(const Source<B, More>& from, const I* cut, I* level) {
  constexpr int kElements = 4 * sizeof(B) / sizeof(uint32_t);
  const auto* thresholds = static_cast<const int64_t*>(from.noise.tables[1]);
  B more[4];
  from.more(more);
  uint32_t high[kElements], low[kElements];
  int32_t cuts[kElements], levels[kElements];
  __builtin_memcpy(high, from.words, sizeof high);
  __builtin_memcpy(low, more, sizeof low);
  __builtin_memcpy(cuts, cut, sizeof cuts);
  __builtin_memcpy(levels, level, sizeof levels);
  for (int i = 0; i < kElements; ++i) {
    const int32_t word = static_cast<int32_t>(high[i] & 0x7FFFFFFFu);
    const int64_t value = int64_t{word} << 32 | low[i];
    if (word == cuts[i])
      while (value < thresholds[levels[i]]) ++levels[i];  // the last is 0
  }
  __builtin_memcpy(level, levels, sizeof levels);
}

// Rounded Gaussian noise, an integer: its size is the number of thresholds above 63 bits, its sign the 64th (GridGaussian
// has the tables). Each tail has the chance nearest to its own of the multiples of 2^-64. Exactly symmetric.
template <class F, class I, class B, class More>
RSFAST_FN void standard_noise(DrawIs<Draw::grid_gaussian>, const Source<B, More>& from, F* z) {
  const auto* guide = static_cast<const int32_t*>(from.noise.tables[0]);
  const int shift = static_cast<int>(from.noise.scalars[0]);
  I cut[4], level[4];
  bool unsettled = false;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const I word = (I)(from.words[i] & 0x7FFFFFFFu);
    const I cell = (I)(as_bits(to_float(word) + 0.5f) >> shift) - (0x3F000000 >> shift);
    look_up(guide, cell, cut[i], level[i]);
    level[i] = word < cut[i] ? level[i] + 1 : level[i];
    unsettled |= any_equal(word, cut[i]);
  }
  if (__builtin_expect(unsettled, 0)) compare_low_words(from, cut, level);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) z[i] = as_float(as_bits(to_float(level[i])) | (from.words[i] & 0x80000000u));
}

// Splitting noise: what `combined` says of z. If random, z is the word, so the edges are at one of 2^32 places along a cell.
// If deterministic, sample s has the edges half way to the next of N places, the place being (floor(h N / 2^16) + s) mod N,
// h the high half of the word. So over N samples every element's edges are at each of the N places once.
template <class F, class I, class B, class More>
RSFAST_FN void standard_noise(DrawIs<Draw::splitting>, const Source<B, More>& from, F* z) {
  const uint32_t count = static_cast<uint32_t>(from.noise.scalars[0]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const B place = (((from.words[i] >> 16) * count) >> 16) + from.turn;
    const B fixed = ((place >= count ? place - count : place) << 16) | 0x8000u;
    z[i] = as_float(count ? fixed : from.words[i]);
  }
}

}  // namespace rsfast
