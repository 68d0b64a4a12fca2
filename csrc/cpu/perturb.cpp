// perturb on the CPU: philox.h, noise.h and perturb.h over vectors of lanes, a tile of 4 * kLanes elements of a row at a
// time, or four elements of each of kRows short rows.
#include "../perturb.h"

#include "../philox.h"
#include "kernels.h"

namespace rsfast {
namespace {

constexpr int kTile = 4 * kLanes;
constexpr int kGroups = kLanes / 4;

// Which block of the tile a lane works on: chosen so that transposing 4x4 within each 128-bit group leaves the tile in
// order. The 64-bit lanes of Philox hold the even lanes in one vector and the odd ones in another.
constexpr uint64_t block_of_lane(int lane) { return kGroups * (lane % 4) + lane / 4; }

template <int Odd>
RSFAST_FN Wides block_offsets() {
  Wides offsets;
  for (int i = 0; i < kLanes / 2; ++i) offsets[i] = block_of_lane(2 * i + Odd);
  return offsets;
}

RSFAST_FN Bits pack(Wides even, Wides odd) {
#if defined(__AVX512F__)
  return reinterpret_cast<Bits>(
      _mm512_mask_shuffle_epi32(reinterpret_cast<__m512i>(even), 0xAAAA, reinterpret_cast<__m512i>(odd), _MM_PERM_CCAA));
#else
  return reinterpret_cast<Bits>((even & 0xFFFFFFFFu) | (odd << 32));
#endif
}

struct TileWords {
  Bits w[4];
};

// The words of a block a lane: of the even lanes and of the odd ones, blocks and counters.
template <class B, class W>
RSFAST_FN TileWords words_of(B even_block, B odd_block, const RowCounters<W>& even_row, const RowCounters<W>& odd_row,
                             const Key& key) {
  const auto even = philox(even_block, even_row.sample_low, even_row.input_id, even_row.stream_and_sample_high, key);
  const auto odd = philox(odd_block, odd_row.sample_low, odd_row.input_id, odd_row.stream_and_sample_high, key);
  return {{pack(even.a, odd.a), pack(even.b, odd.b), pack(even.c, odd.c), pack(even.d, odd.d)}};
}

RSFAST_FN TileWords tile_words(uint64_t block, const RowCounter& row, const Key& key) {
  return words_of(block_offsets<0>() + block, block_offsets<1>() + block, row, row, key);
}

template <int... I>
struct Indices {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  using type = Indices<I...>;
};

// Interleave pairs of `Unit` lanes from the low (Half = 0) or high (1) half of each 128-bit group of a and b.
template <int Unit, int Half, class V, int... I>
RSFAST_FN V interleave(V a, V b, Indices<I...>) {
  return __builtin_shufflevector(
      a, b, (I / 4 * 4 + Half * 2 + I % 4 / (2 * Unit) * Unit + I % Unit + (I % (2 * Unit) < Unit ? 0 : kLanes))...);
}

template <class V>
RSFAST_FN void transpose(V v[4]) {
  constexpr auto lanes = Count<kLanes>::type{};
  const V a = interleave<1, 0>(v[0], v[1], lanes), b = interleave<1, 1>(v[0], v[1], lanes);
  const V c = interleave<1, 0>(v[2], v[3], lanes), d = interleave<1, 1>(v[2], v[3], lanes);
  v[0] = interleave<2, 0>(a, c, lanes);
  v[1] = interleave<2, 1>(a, c, lanes);
  v[2] = interleave<2, 0>(b, d, lanes);
  v[3] = interleave<2, 1>(b, d, lanes);
}

// Each lane's word, of its group: a block for every lane, in the order of the lanes.
RSFAST_FN Bits words_of_groups(Bits groups, const RowCounter& row, const Key& key) {
  const Wides blocks = reinterpret_cast<Wides>(groups >> 2);
  return word_of_group(groups, words_of(blocks, blocks >> 32, row, row, key).w);
}

struct Row {
  RowCounter counter;
  uint32_t turn;
  const float* x;
};

template <Draw D>
RSFAST_FN Row row_of(const PerturbJob& job, int64_t row) {
  const int64_t input = job.rows[row], sample = job.samples[row];
  return {row_counter(DrawIs<D>{}, job.noise, sample, job.input_ids[input], job.stream),
          turn_of(DrawIs<D>{}, job.noise, sample), job.x + input * job.elements};
}

// What a kernel reads of some elements: x, and one value an element each of the others, of which any may be null.
struct Elements {
  const float *x, *noise_scale, *scale, *shift;
};

RSFAST_FN Elements elements_of(const PerturbJob& job, const Row& row, int64_t first) {
  const auto from = [first](const float* values) { return values ? values + first : nullptr; };
  return {row.x + first, from(job.noise.each), from(job.scale), from(job.shift)};
}

template <Type T>
struct Output {
  using type = uint16_t;
  RSFAST_FN void write(uint16_t* out, Floats value) {
    const Bits bits = as_bits(value);
    const Bits half = T == Type::float16 ? to_float16(bits) : to_bfloat16(bits);
#if defined(__AVX512F__)
    store(out, _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(half)));
#else
    for (int i = 0; i < kLanes; ++i) out[i] = static_cast<uint16_t>(half[i]);
#endif
  }
};
template <>
struct Output<Type::float32> {
  using type = float;
  RSFAST_FN void write(float* out, Floats value) { store(out, value); }
};
template <>
struct Output<Type::float64> {
  using type = double;
  RSFAST_FN void write(double* out, Floats value) {
    typedef double Doubles __attribute__((vector_size(kLanes * 8)));
    store(out, __builtin_convertvector(value, Doubles));
  }
};

// The standard noise of N tiles. words(n, more) makes a tile's words, or those of Source.more, and turn(n) its lanes' turns.
// Stages run over all N tiles, so that their chains of dependent operations overlap.
template <Draw D, int N, class WordsOf, class TurnOf>
RSFAST_FN void noise_of(const NoiseParameters& noise, const WordsOf& words, const TurnOf& turn, Floats* z) {
  TileWords made[N];
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) made[n] = words(n, false);
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) {
    const auto more = [&](Bits* w) {
      const TileWords others = words(n, true);
      __builtin_memcpy(w, others.w, sizeof others.w);
    };
    standard_noise<Floats, Ints>(DrawIs<D>{}, source_of(made[n].w, more, noise, turn(n)), z + 4 * n);
  }
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) transpose(z + 4 * n);
}

// That of elements [tile, tile + N * kTile) of a row.
template <Draw D, int N>
RSFAST_FN void noise_of_tiles(const PerturbJob& job, const Key& key, const Row& row, int64_t tile, Floats* z) {
  const auto words = [&](int n, bool more) __attribute__((always_inline)) {
    return tile_words(static_cast<uint64_t>(tile) / 4 + n * kLanes, more ? more_words(row.counter) : row.counter, key);
  };
  noise_of<D, N>(job.noise, words, [&](int) { return Bits{} + row.turn; }, z);
}

// That of elements whose groups share a word.
template <Draw D, int N>
RSFAST_FN void noise_of_groups(const PerturbJob& job, const Key& key, const Row& row, const float* groups, Floats* z) {
  const auto no_more = [](Bits* w) { __builtin_memset(w, 0, 4 * sizeof *w); };
  for (int n = 0; n < 4 * N; n += 4) {
    Bits words[4];
    for (int j = 0; j < 4; ++j) words[j] = words_of_groups(load<Bits>(groups + (n + j) * kLanes), row.counter, key);
    standard_noise<Floats, Ints>(DrawIs<D>{}, source_of(words, no_more, job.noise, Bits{} + row.turn), z + n);
  }
}

// Elements [tile, tile + N * kTile) of a row, at which `of` points.
template <Draw D, Type T, int N>
RSFAST_FN void perturb_tiles(const PerturbJob& job, const Key& key, const Row& row, int64_t tile, const Elements& of,
                             typename Output<T>::type* out) {
  Floats z[4 * N];
  if constexpr (D == Draw::mask) {
    if (of.noise_scale)
      noise_of_groups<D, N>(job, key, row, of.noise_scale, z);
    else
      noise_of_tiles<D, N>(job, key, row, tile, z);
  } else {
    noise_of_tiles<D, N>(job, key, row, tile, z);
  }
  const auto finish = [&](const auto& noise_scale) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int j = 0; j < 4 * N; ++j) {
      const int at = j * kLanes;
      Floats y = noisy(DrawIs<D>{}, job, job.clamp, z[j], noise_scale(at), load<Floats>(of.x + at));
      if (of.scale) y = fused(y, load<Floats>(of.scale + at), load<Floats>(of.shift + at));
      Output<T>::write(out + at, y);
    }
  };
  if (of.noise_scale)  // out here, or it costs a tenth of the time
    finish([&](int at) { return load<Floats>(of.noise_scale + at); });
  else
    finish([&](int) { return Floats{} + job.noise.scalars[0]; });
}

constexpr int kTogether = kLanes == 16 ? 2 : 1;  // as many tiles as the registers hold

// Elements [begin, end) of a row, in logical order. Tiles begin at multiples of kTile whatever `begin` is, so that a
// value never depends on where a span was cut.
template <Draw D, Type T>
__attribute__((noinline)) void perturb_span(const PerturbJob& job, const Key& key, const Row& row, int64_t begin,
                                            int64_t end, typename Output<T>::type* out) {
  int64_t step = kTile;
  for (int64_t tile = begin / kTile * kTile; tile < end; tile += step) {
    const Elements of = elements_of(job, row, tile);
    const int64_t from = tile < begin ? begin - tile : 0, to = end - tile < kTile ? end - tile : kTile;
    step = from == 0 && end - tile >= kTogether * kTile ? kTogether * kTile : kTile;
    if (step > kTile) {
      perturb_tiles<D, T, kTogether>(job, key, row, tile, of, out + (tile - begin));
    } else {
      const bool whole = to - from == kTile;
      float space[4][kTile];
      typename Output<T>::type values[kTile];
      const auto inside = [=](const float* given, float* copy) {
        if (whole || !given) return given;
        __builtin_memset(copy, 0, kTile * sizeof *copy);
        __builtin_memcpy(copy + from, given + from, (to - from) * sizeof *copy);
        return static_cast<const float*>(copy);
      };
      const Elements copies = {inside(of.x, space[0]), inside(of.noise_scale, space[1]), inside(of.scale, space[2]),
                               inside(of.shift, space[3])};
      perturb_tiles<D, T, 1>(job, key, row, tile, copies, whole ? out + (tile - begin) : values);
      if (!whole) __builtin_memcpy(out + (tile + from - begin), values + from, (to - from) * sizeof values[0]);
    }
  }
}

// Short rows would leave most lanes of a tile idle, so kRows of them take a lane each.
constexpr int kRows = kTogether * kLanes;

// Whether `count` rows are made sooner so than in tiles. Measured: a block costs a quarter more, but so does a tile cut
// short. Longer rows lie too far apart to be written side by side.
RSFAST_FN bool rows_pay(int64_t elements, int64_t count) {
  const int64_t blocks = (elements + 3) / 4, whole = elements / kTile, cut = elements % kTile != 0;
  return elements < 192 && 5 * kRows * blocks <= count * kLanes * (4 * whole + 5 * cut);
}

// What kernels read of kRows rows, lane by lane (even lanes, then odd ones), but x in the order of the rows.
struct Rows {
  uint64_t sample_low[2][kRows / 2], input_id[2][kRows / 2], stream_and_sample_high[2][kRows / 2];
  uint32_t turn[kRows];
  const float* x[kRows];
  bool one_input;
};

// `count` rows from the first on, and the last once more in every lane that is left. Lanes take rows in the order of
// block_of_lane, so that a transposed tile has the rows in order.
template <Draw D>
RSFAST_FN Rows rows_of(const PerturbJob& job, int64_t first, int64_t count) {
  Rows rows;
  rows.one_input = true;
  for (int lane = 0; lane < kRows; ++lane) {
    const int64_t i = lane / kLanes * kLanes + static_cast<int64_t>(block_of_lane(lane % kLanes));
    const Row row = row_of<D>(job, first + (i < count ? i : count - 1));
    rows.sample_low[lane % 2][lane / 2] = row.counter.sample_low;
    rows.input_id[lane % 2][lane / 2] = row.counter.input_id;
    rows.stream_and_sample_high[lane % 2][lane / 2] = row.counter.stream_and_sample_high;
    rows.turn[lane] = row.turn;
    rows.x[i] = row.x;
    rows.one_input &= row.x == rows.x[0];
  }
  return rows;
}

// The counters of the even (Odd = 0) or odd (1) lanes of the n-th tile.
template <int Odd>
RSFAST_FN RowCounters<Wides> counters_of(const Rows& rows, int n, bool more) {
  const int at = n * kLanes / 2;
  const RowCounters<Wides> counters = {load<Wides>(rows.sample_low[Odd] + at), load<Wides>(rows.input_id[Odd] + at),
                                       load<Wides>(rows.stream_and_sample_high[Odd] + at)};
  return more ? more_words(counters) : counters;
}

// The standard noise of elements [first, first + 4) of all rows, row after row.
template <Draw D>
__attribute__((noinline)) void noise_of_rows(const PerturbJob& job, const Key& key, const Rows& rows, int64_t first,
                                             Floats* z) {
  const auto block = [&](int n, uint64_t block, bool more) __attribute__((always_inline)) {
    return words_of(block, block, counters_of<0>(rows, n, more), counters_of<1>(rows, n, more), key);
  };
  const auto words = [&](int n, bool more) __attribute__((always_inline)) {
    if (D != Draw::mask || !job.noise.each) return block(n, first / 4, more);
    TileWords of_groups = {};
    for (int i = 0; i < 4 && first + i < job.elements; ++i) {
      const uint32_t group = as_bits(job.noise.each[first + i]);
      of_groups.w[i] = block(n, group / 4, more).w[group % 4];
    }
    return of_groups;
  };
  noise_of<D, kTogether>(job.noise, words, [&](int n) { return load<Bits>(rows.turn + n * kLanes); }, z);
}

typedef float Quad __attribute__((vector_size(16)));

// Elements [first, first + 4) of a row, with 0 past its end.
RSFAST_FN Quad quad(const float* row, int64_t first, int64_t end) {
  if (end - first >= 4) return load<Quad>(row + first);
  Quad some = {};
  for (int i = 0; i < 3; ++i)
    if (first + i < end) some[i] = row[first + i];
  return some;
}

template <class V, int... I>
RSFAST_FN auto joined(V a, V b, Indices<I...>) {
  return __builtin_shufflevector(a, b, I...);
}

template <int N>
RSFAST_FN auto joined(const Quad* quads) {
  if constexpr (N == 1)
    return *quads;
  else
    return joined(joined<N / 2>(quads), joined<N / 2>(quads + N / 2), typename Count<4 * N>::type{});
}

RSFAST_FN Floats repeated(Quad quad) {
  Quad quads[kGroups];
  for (int i = 0; i < kGroups; ++i) quads[i] = quad;
  return joined<kGroups>(quads);
}

// `count` rows, of at most kRows. Four elements of each are written, the last four first and row after row: those past a
// row's end are then overwritten by the rows that they belong to. At `end` and beyond nothing is written.
template <Draw D, Type T>
__attribute__((noinline)) void perturb_rows(const PerturbJob& job, const Key& key, int64_t first_row, int64_t count,
                                            typename Output<T>::type* out, const typename Output<T>::type* end) {
  const Rows rows = rows_of<D>(job, first_row, count);
  for (int64_t first = (job.elements - 1) / 4 * 4; first >= 0; first -= 4) {
    Floats z[4 * kTogether];
    noise_of_rows<D>(job, key, rows, first, z);
    const auto of_all = [&](const float* row) { return repeated(quad(row, first, job.elements)); };
    const Floats noise_scale = job.noise.each ? of_all(job.noise.each) : Floats{} + job.noise.scalars[0];
    const Floats scale = job.scale ? of_all(job.scale) : Floats{}, shift = job.scale ? of_all(job.shift) : Floats{};
    Floats x = of_all(rows.x[0]);
    typename Output<T>::type values[4 * kRows];
#pragma GCC unroll 1
    for (int v = 0; v < 4 * kTogether; ++v) {
      if (!rows.one_input) {
        Quad quads[kGroups];
        for (int i = 0; i < kGroups; ++i) quads[i] = quad(rows.x[v * kGroups + i], first, job.elements);
        x = joined<kGroups>(quads);
      }
      Floats y = noisy(DrawIs<D>{}, job, job.clamp, z[v], noise_scale, x);
      if (job.scale) y = fused(y, scale, shift);
      Output<T>::write(values + v * kLanes, y);
    }
    auto* to = out + first;
    for (int64_t i = 0; i < count; ++i, to += job.elements) {
      if (end - to >= 4)
        __builtin_memcpy(to, values + 4 * i, 4 * sizeof values[0]);
      else
        __builtin_memcpy(to, values + 4 * i, (job.elements - first) * sizeof values[0]);
    }
  }
}

// A unit of positions of all channels, made channel by channel.
template <Draw D, Type T>
RSFAST_FN void perturb_channels_last(const PerturbJob& job, const Key& key, const Row& row, int64_t begin, int64_t end,
                                     typename Output<T>::type* out) {
  const int64_t positions = job.elements / job.channels;
  typename Output<T>::type values[256];
  for (int64_t c = 0; c < job.channels; ++c) {
    perturb_span<D, T>(job, key, row, c * positions + begin, c * positions + end, values);
    for (int64_t p = begin; p < end; ++p) out[p * job.channels + c] = values[p - begin];
  }
}

template <Draw D, Type T>
void perturb_typed(const PerturbJob& job, int64_t begin, int64_t end) {
  const Key key = make_key(job.seed);
  const int64_t length = job.channels_last ? job.elements / job.channels : job.elements;
  const int64_t span = perturb_unit_length(job);
  int64_t unit = begin;
  if (!job.channels_last && length <= span) {
    auto* out = static_cast<typename Output<T>::type*>(job.out);
    for (int64_t count; unit < end; unit += count) {
      count = end - unit < kRows ? end - unit : kRows;
      if (!rows_pay(length, count)) break;
      perturb_rows<D, T>(job, key, unit, count, out + unit * length, out + end * length);
    }
  }
  for (; unit < end; ++unit) {
    const int64_t from = unit / job.batch * span, r = unit % job.batch;
    const int64_t to = from + span < length ? from + span : length;
    auto* out = static_cast<typename Output<T>::type*>(job.out) + r * job.elements;
    if (job.channels_last)
      perturb_channels_last<D, T>(job, key, row_of<D>(job, r), from, to, out);
    else
      perturb_span<D, T>(job, key, row_of<D>(job, r), from, to, out + from);
  }
}

template <Draw D>
void perturb_drawn(const PerturbJob& job, int64_t begin, int64_t end) {
  switch (job.type) {
    case Type::float16: return perturb_typed<D, Type::float16>(job, begin, end);
    case Type::bfloat16: return perturb_typed<D, Type::bfloat16>(job, begin, end);
    case Type::float64: return perturb_typed<D, Type::float64>(job, begin, end);
    default: return perturb_typed<D, Type::float32>(job, begin, end);
  }
}

void perturb(const PerturbJob& job, int64_t begin, int64_t end) {
  with_draw(job.noise.draw, [&](auto is) { perturb_drawn<decltype(is)::draw>(job, begin, end); });
}

void philox_words(const int64_t counter[3], uint64_t seed, int64_t first_block, int64_t blocks, uint32_t* out) {
  const Key key = make_key(seed);
  const RowCounter row{static_cast<uint64_t>(counter[0]), static_cast<uint64_t>(counter[1]),
                       static_cast<uint64_t>(counter[2])};
  for (int64_t block = 0; block < blocks; block += kLanes) {
    TileWords words = tile_words(first_block + block, row, key);
    transpose(words.w);
    if (blocks - block >= kLanes)
      __builtin_memcpy(out + 4 * block, words.w, sizeof words.w);
    else
      __builtin_memcpy(out + 4 * block, words.w, (blocks - block) * 4 * sizeof(uint32_t));
  }
}

// As many blocks of four words as there are lanes at a time; what the last one lacks is 0. For draws that need no more
// words.
void noise_of_words(int draw, const uint32_t* words, int64_t count, float* out) {
  const NoiseParameters none = {};
  const auto no_more = [](Bits* w) { __builtin_memset(w, 0, 4 * sizeof *w); };
  with_draw(static_cast<Draw>(draw), [&](auto is) {
    for (int64_t i = 0; i < count; i += kTile) {
      const int64_t some = count - i < kTile ? count - i : kTile;
      uint32_t from[kTile] = {};
      float to[kTile];
      __builtin_memcpy(from, words + i, some * sizeof *words);
      Bits w[4];
      Floats z[4];
      for (int j = 0; j < kTile; ++j) w[j % 4][j / 4] = from[j];
      standard_noise<Floats, Ints>(is, source_of(w, no_more, none, Bits{}), z);
      for (int j = 0; j < kTile; ++j) to[j] = z[j % 4][j / 4];
      __builtin_memcpy(out + i, to, some * sizeof *out);
    }
  });
}

}  // namespace

void RSFAST_NAME(accumulate_)(const AccumulateJob&, const AccumulateShare&, char*);
size_t RSFAST_NAME(accumulate_scratch_)(const AccumulateJob&);

const Kernels RSFAST_NAME(kernels_) = {perturb, RSFAST_NAME(accumulate_), RSFAST_NAME(accumulate_scratch_), philox_words,
                                       noise_of_words};

}  // namespace rsfast
