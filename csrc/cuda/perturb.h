// perturb on a GPU: what each thread of the grid does, for CUDA and for the tests' host loop. A thread makes blocks of four
// elements that are neighbours in logical order, as Philox makes them, and writes 16 bytes at a time where addresses allow.
#pragma once

#include "../perturb.h"
#include "../philox.h"
#include "block.h"

namespace rsfast {

// floor(n / by) without a division (Granlund and Montgomery 1994), for n and by below 2^32; beyond, with one.
struct Divider {
  uint64_t by;
  uint32_t magic, shift;
};

inline Divider make_divider(int64_t by) {
  uint32_t shift = 0;
  while (shift < 32 && (uint64_t{1} << shift) < static_cast<uint64_t>(by)) ++shift;
  const uint64_t magic = ((uint64_t{1} << 32) * ((uint64_t{1} << shift) - by)) / by + 1;
  return {static_cast<uint64_t>(by), static_cast<uint32_t>(magic), shift};
}

RSFAST_FN uint32_t quotient(uint32_t n, const Divider& d) {
  return static_cast<uint32_t>(((multiply_wide(n, d.magic) >> 32) + n) >> d.shift);
}

RSFAST_FN uint64_t quotient(uint64_t n, const Divider& d) {
  return d.by >> 32 || n >> 32 ? n / d.by : quotient(static_cast<uint32_t>(n), d);
}

struct PerturbGrid {
  PerturbJob job;
  Key key;
  Divider positions, tile_channels;
  bool aligned;                                           // x, out and all their rows begin at multiples of 16 bytes
  int64_t tile_positions, position_tiles, channel_tiles;  // of channels_last
  // The blocks along x of a row, below 2^31. A row has 2^34 elements at most, so 32 bits hold the place of each four. That
  // of a thread past the row's end does not wrap: blocks of 256 threads end at 2^32 fours, and threads_for rounds up no
  // further.
  int64_t pieces;
  int threads;
  size_t shared;
};

constexpr int kMostThreads = 256;
constexpr int kThreadElements = 16;  // of a contiguous row: enough to share what a thread must load first
constexpr int kTileElements = 4096;

inline int element_size(Type type) { return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2; }

// The number of threads that leaves the fewest idle in a row's last block, and of those the largest.
inline int threads_for(int64_t items) {
  int best = kMostThreads;
  for (int threads = kMostThreads; threads >= 32; threads -= 32)
    if (blocks_of(items, threads) * threads < blocks_of(items, best) * best) best = threads;
  return best;
}

inline PerturbGrid make_grid(const PerturbJob& given) {
  PerturbGrid g = {};
  g.job = given;
  const int64_t e = given.elements, c = given.channels, p = e / c, size = element_size(given.type);
  const int64_t each = size == 2 ? 8 : 4;  // elements that 16 bytes of x, and 16 or 32 of out, hold
  // With one channel, or one position, the two layouts are one.
  g.job.channels_last = given.channels_last && c > 1 && p > 1;
  g.key = make_key(given.seed);
  g.positions = make_divider(p);
  g.aligned =
      e % each == 0 && reinterpret_cast<uintptr_t>(given.out) % 16 == 0 && reinterpret_cast<uintptr_t>(given.x) % 16 == 0;
  if (g.job.channels_last) {
    const int64_t width = c <= 64 ? c : 64, most = kTileElements / width / 8 * 8;
    g.tile_channels = make_divider(width);
    g.tile_positions = blocks_of(blocks_of(p, blocks_of(p, most)), 8) * 8;
    g.position_tiles = blocks_of(p, g.tile_positions);
    g.channel_tiles = blocks_of(c, width);
    g.pieces = g.position_tiles * g.channel_tiles;
    g.threads = threads_for(width * (g.tile_positions / 4));
    g.shared = width * g.tile_positions * size;
    g.aligned = g.aligned && p % 4 == 0 && (width == c || c % each == 0);
  } else {
    g.threads = threads_for(blocks_of(e, kThreadElements));
    g.pieces = blocks_of(blocks_of(e, kThreadElements), g.threads);
  }
  return g;
}

struct Row {
  RowCounter counter;
  uint32_t turn;
  const float* x;
};

template <Draw D>
RSFAST_KERNEL_FN Row row_of(const PerturbJob& job, int64_t row) {
  const int64_t input = job.rows[row], sample = job.samples[row];
  RSFAST_REQUIRE(input >= 0 && input < job.inputs, "rsfast.perturb: rows must lie in [0, inputs)");
  RSFAST_REQUIRE(sample >= 0 && sample < int64_t{1} << 56, "rsfast.perturb: samples must lie in [0, 2^56)");
  const int64_t id = job.input_ids[input];
  RSFAST_REQUIRE(id >= 0 && id < int64_t{1} << 32, "rsfast.perturb: input_ids must lie in [0, 2^32)");
  return {row_counter(DrawIs<D>{}, job.noise, sample, id, job.stream), turn_of(DrawIs<D>{}, job.noise, sample),
          job.x + input * job.elements};
}

struct alignas(16) Sixteen {
  uint32_t words[4];
};

struct Four {
  float of[4];
};

struct FourWords {
  uint32_t of[4];
};

RSFAST_FN FourWords four_words(uint32_t block, const RowCounter& c, const Key& key) {
  const auto w = philox(uint64_t{block}, c.sample_low, c.input_id, c.stream_and_sample_high, key);
  return {{static_cast<uint32_t>(w.a), static_cast<uint32_t>(w.b), static_cast<uint32_t>(w.c), static_cast<uint32_t>(w.d)}};
}

// The words of elements whose groups share one: a block for each, as neighbours need not be of one.
template <bool Aligned>
RSFAST_FN FourWords words_of_groups(const PerturbGrid& g, const RowCounter& c, uint64_t first) {
  FourWords words = {};
  for (int i = 0; i < 4; ++i) {
    const bool inside = Aligned || first + i < static_cast<uint64_t>(g.job.elements);
    const uint32_t group = inside ? as_bits(g.job.noise.each[first + i]) : 0;
    const FourWords block = four_words(group / 4, c, g.key);
    words.of[i] = word_of_group(group, block.of);
  }
  return words;
}

// The finished values of elements 4 four to 4 four + 3 of a row; those past its end are made of x = 0.
template <Draw D, bool Aligned>
RSFAST_KERNEL_FN Four perturb_four(const PerturbGrid& g, const Row& row, uint32_t four) {
  const PerturbJob& job = g.job;
  const uint64_t first = uint64_t{four} * 4;
  FourWords words;
  if (D == Draw::mask && job.noise.each)
    words = words_of_groups<Aligned>(g, row.counter, first);
  else
    words = four_words(four, row.counter, g.key);
  const auto more = [&](uint32_t* w) {
    const FourWords made = four_words(four, more_words(row.counter), g.key);
    for (int i = 0; i < 4; ++i) w[i] = made.of[i];
  };
  Four z, y = {};
  standard_noise<float, int32_t>(DrawIs<D>{}, source_of(words.of, more, job.noise, row.turn), z.of);
  if constexpr (Aligned) {
    const Sixteen bits = *reinterpret_cast<const Sixteen*>(row.x + first);
    for (int i = 0; i < 4; ++i) y.of[i] = as_float(bits.words[i]);
  } else {
    for (int i = 0; i < 4; ++i)
      if (first + i < static_cast<uint64_t>(job.elements)) y.of[i] = row.x[first + i];
  }
  if (D != Draw::mask && job.noise.each) {
    for (int i = 0; i < 4; ++i) {
      const bool inside = Aligned || first + i < static_cast<uint64_t>(job.elements);
      y.of[i] = noisy(DrawIs<D>{}, job, z.of[i], inside ? job.noise.each[first + i] : 0.0f, y.of[i]);
    }
  } else {
    for (int i = 0; i < 4; ++i) y.of[i] = noisy(DrawIs<D>{}, job, z.of[i], job.noise.scalars[0], y.of[i]);
  }
  if (job.scale) {
    uint64_t channel = quotient(first, g.positions);
    float scale = job.scale[channel], shift = job.shift[channel];
    const bool one_channel = g.positions.by % 4 == 0;
    for (int i = 0; i < 4; ++i) {
      if (!one_channel && first + i < static_cast<uint64_t>(job.elements)) {
        channel = quotient(first + i, g.positions);
        scale = job.scale[channel], shift = job.shift[channel];
      }
      y.of[i] = fused(y.of[i], scale, shift);
    }
  }
  return y;
}

// The output types. pair: two values in one word, the first in its low half; CUDA has an instruction for it, which rounds as
// the integers do (but for the payload of NaN).
template <Type T>
struct Output {
  using type = uint16_t;
  RSFAST_FN uint32_t pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32_t word;
    if constexpr (T == Type::bfloat16)
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    else
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
#else
    const auto half = [](float v) { return T == Type::bfloat16 ? to_bfloat16(as_bits(v)) : to_float16(as_bits(v)); };
    return (half(first) & 0xFFFFu) | half(second) << 16;
#endif
  }
  RSFAST_FN uint16_t one(float value) { return static_cast<uint16_t>(pair(value, 0.0f)); }
};

template <>
struct Output<Type::float32> {
  using type = float;
  RSFAST_FN float one(float value) { return value; }
};

template <>
struct Output<Type::float64> {
  using type = double;
  RSFAST_FN double one(float value) { return value; }
};

struct alignas(16) TwoDoubles {
  double of[2];
};

// Contiguous rows: block (x, y) makes piece x of row y, kThreadElements a thread, of which each 16 bytes lie beside those of
// the neighbouring thread.
template <Draw D, Type T, bool Aligned>
RSFAST_KERNEL_FN void perturb_contiguous(const Block& block, const PerturbGrid& g) {
  using Out = typename Output<T>::type;
  constexpr int kFours = sizeof(Out) == 2 ? 2 : 1, kStores = kThreadElements / (4 * kFours);
  const uint64_t elements = g.job.elements;
  const Row row = row_of<D>(g.job, block.y);
  Out* out = static_cast<Out*>(g.job.out) + block.y * g.job.elements;
  block.apart([&](int thread) {
    uint32_t store = static_cast<uint32_t>(block.x) * kStores * block.threads + thread;
    for (int s = 0; s < kStores; ++s, store += block.threads) {
      const uint32_t first = store * kFours;
      if (uint64_t{first} * 4 >= elements) return;
      if constexpr (Aligned && T == Type::float64) {
        const Four y = perturb_four<D, true>(g, row, first);
        TwoDoubles* to = reinterpret_cast<TwoDoubles*>(out) + uint64_t{store} * 2;
        to[0] = {y.of[0], y.of[1]};
        to[1] = {y.of[2], y.of[3]};
      } else if constexpr (Aligned) {
        Sixteen bits;
        for (int i = 0; i < kFours; ++i) {
          const Four y = perturb_four<D, true>(g, row, first + i);
          if constexpr (T == Type::float32) {
            for (int j = 0; j < 4; ++j) bits.words[j] = as_bits(y.of[j]);
          } else {
            bits.words[2 * i] = Output<T>::pair(y.of[0], y.of[1]);
            bits.words[2 * i + 1] = Output<T>::pair(y.of[2], y.of[3]);
          }
        }
        reinterpret_cast<Sixteen*>(out)[store] = bits;
      } else {
        for (int i = 0; i < kFours; ++i) {
          const uint64_t at = (uint64_t{first} + i) * 4;
          if (at >= elements) return;
          const Four y = perturb_four<D, false>(g, row, first + i);
          for (int j = 0; j < 4; ++j)
            if (at + j < elements) out[at + j] = Output<T>::one(y.of[j]);
        }
      }
    }
  });
}

// Channels last: block (x, y) makes tile x of row y, some positions of some channels, in shared memory, and then writes it
// out.
template <Draw D, Type T, bool Aligned>
RSFAST_KERNEL_FN void perturb_channels_last(const Block& block, const PerturbGrid& g) {
  using Out = typename Output<T>::type;
  constexpr int kEach = 16 / sizeof(Out);
  const int64_t channels = g.job.channels, positions = g.positions.by;
  const int width = static_cast<int>(g.tile_channels.by);
  const int64_t c0 = block.x / g.position_tiles * width, p0 = block.x % g.position_tiles * g.tile_positions;
  const int tile_width = static_cast<int>(channels - c0 < width ? channels - c0 : width);
  const int tile_length = static_cast<int>(positions - p0 < g.tile_positions ? positions - p0 : g.tile_positions);
  // Where a channel's first element is not the first of a four, one more is needed.
  const int fours = (tile_length + 3) / 4 + (Aligned ? 0 : 1);
  // Lines of neighbours in the output: one if the tile has all channels, else one a position.
  const bool whole = tile_width == channels;
  const int lines = whole ? 1 : tile_length, length = whole ? tile_width * tile_length : tile_width;
  Out* tile = reinterpret_cast<Out*>(block.shared);
  const Row row = row_of<D>(g.job, block.y);
  // Neighbouring threads take neighbouring channels: that spreads their writes over the banks.
  block.each([&](int thread) {
    for (int item = thread; item < fours * width; item += block.threads) {
      const int j = static_cast<int>(quotient(static_cast<uint32_t>(item), g.tile_channels)), c = item - j * width;
      if (c >= tile_width) continue;
      if constexpr (Aligned) {
        const uint32_t first = static_cast<uint32_t>(positions / 4) * (static_cast<uint32_t>(c0) + c) + p0 / 4;
        const Four y = perturb_four<D, true>(g, row, first + j);
        for (int i = 0; i < 4; ++i) tile[(4 * j + i) * tile_width + c] = Output<T>::one(y.of[i]);
      } else {
        const uint64_t begin = (c0 + c) * positions + p0, four = begin / 4 + j;
        const int p = static_cast<int>(four * 4 - begin);
        if (p >= tile_length) continue;
        const Four y = perturb_four<D, false>(g, row, static_cast<uint32_t>(four));
        for (int i = 0; i < 4; ++i)
          if (p + i >= 0 && p + i < tile_length) tile[(p + i) * tile_width + c] = Output<T>::one(y.of[i]);
      }
    }
  });
  Out* out = static_cast<Out*>(g.job.out) + block.y * g.job.elements + p0 * channels + c0;
  block.each([&](int thread) {
    if (Aligned && length % kEach == 0) {
      const int pieces = length / kEach;
      for (int item = thread; item < lines * pieces; item += block.threads) {
        const int line = whole ? 0 : item / pieces, at = (item - line * pieces) * kEach;
        *reinterpret_cast<Sixteen*>(out + line * channels + at) =
            *reinterpret_cast<const Sixteen*>(tile + line * length + at);
      }
    } else {
      for (int item = thread; item < lines * length; item += block.threads) {
        const int line = whole ? 0 : item / length;
        out[line * channels + item - line * length] = tile[item];
      }
    }
  });
}

}  // namespace rsfast
