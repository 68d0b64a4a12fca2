// perturb on a GPU: what each thread of the grid does, for CUDA and for the tests' host loop. A thread makes blocks of four
// elements that are neighbours in logical order, as Philox makes them, and writes 16 bytes at a time where addresses allow.
#pragma once

#include "../perturb.h"
#include "../philox.h"
#include "block.h"

// A loop that is not to be unrolled: its body is long, or seldom run.
#if defined(__CUDACC__)
#define RSFAST_ROLLED _Pragma("unroll 1")
#define RSFAST_UNROLLED _Pragma("unroll")  // else what a loop indexes may lie in local memory
#else
#define RSFAST_ROLLED
#define RSFAST_UNROLLED
#endif

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

// How a row is written. three_channels is channels_last with three of them.
enum class Layout : int { contiguous, channels_last, three_channels };

// What a kernel is compiled for. `any` asks the job, and takes noise.each and channels of any length; the others take
// neither.
enum class Options : int { none, scale, clamp, scale_and_clamp, any };

RSFAST_FN constexpr bool scales(Options options) { return options == Options::scale || options == Options::scale_and_clamp; }
RSFAST_FN constexpr bool clamps(Options options) { return options == Options::clamp || options == Options::scale_and_clamp; }

// The draws whose kernels are compiled for each of the options: those that most runs take.
RSFAST_FN constexpr bool has_options(Draw draw, Type type) { return draw == Draw::gaussian && type != Type::float64; }

struct PerturbGrid {
  PerturbJob job;
  Key key;
  Layout layout;
  Options options;
  bool aligned;  // x, out and all their rows begin at multiples of 16 bytes
  // A thread makes one item after the other, `threads` apart, up to `last_item` of the row: of a contiguous row the elements
  // that 16 bytes of out hold, of three_channels as many positions. There are 2^32 of them at most, and the places of
  // threads past the row's end do not wrap: blocks of 256 threads end at 2^32 items, and threads_for rounds up no further.
  uint32_t last_item;
  uint32_t channel_fours;                                 // of three_channels
  Divider positions, channel_items, tile_channels;        // channel_items: of scale
  int64_t tile_positions, position_tiles, channel_tiles;  // of channels_last
  int64_t pieces;                                         // the blocks along x of a row, below 2^31
  int threads;
  size_t shared;
};

constexpr int kMostThreads = 256;
constexpr int kTileElements = 4096;
// The elements of a thread: enough to share what it must load first.
constexpr int kThreadElements = 32, kThreadElementsOfThreeChannels = 48;

// The fours of neighbours that 16 bytes of out hold, but for float64.
RSFAST_FN constexpr int fours_of(Type type) { return type == Type::float32 || type == Type::float64 ? 1 : 2; }

RSFAST_FN constexpr int items_of(Type type, Layout layout) {
  return layout == Layout::contiguous ? kThreadElements / (4 * fours_of(type))
                                      : kThreadElementsOfThreeChannels / (12 * fours_of(type));
}

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
  const int64_t e = given.elements, c = given.channels, p = e / c, item = 4 * fours_of(given.type);
  g.key = make_key(given.seed);
  g.positions = make_divider(p);
  g.channel_items = make_divider(blocks_of(p, item));
  g.aligned =
      e % item == 0 && reinterpret_cast<uintptr_t>(given.out) % 16 == 0 && reinterpret_cast<uintptr_t>(given.x) % 16 == 0;
  const bool options = g.aligned && has_options(given.noise.draw, given.type) && !given.noise.each;
  // With one channel, or one position, the two layouts are one.
  if (!given.channels_last || c == 1 || p == 1)
    g.layout = Layout::contiguous;
  else
    g.layout = options && c == 3 && p % item == 0 ? Layout::three_channels : Layout::channels_last;
  const bool one_channel = p % item == 0 && g.channel_items.by >> 32 == 0;
  if (!options || g.layout == Layout::channels_last || (given.scale && !one_channel))
    g.options = Options::any;
  else
    g.options = given.scale   ? given.clamp ? Options::scale_and_clamp : Options::scale
                : given.clamp ? Options::clamp
                              : Options::none;
  if (g.layout == Layout::channels_last) {
    const int64_t width = c <= 64 ? c : 64, most = kTileElements / width / 8 * 8;
    g.tile_channels = make_divider(width);
    g.tile_positions = blocks_of(blocks_of(p, blocks_of(p, most)), 8) * 8;
    g.position_tiles = blocks_of(p, g.tile_positions);
    g.channel_tiles = blocks_of(c, width);
    g.pieces = g.position_tiles * g.channel_tiles;
    g.threads = threads_for(width * (g.tile_positions / 4));
    g.shared = width * g.tile_positions * element_size(given.type);
    g.aligned = g.aligned && p % 4 == 0 && (width == c || c % item == 0);
  } else {
    const int64_t items = blocks_of(g.layout == Layout::contiguous ? e : p, item);
    const int64_t threads = blocks_of(items, items_of(given.type, g.layout));
    g.channel_fours = static_cast<uint32_t>(p / 4);
    g.last_item = static_cast<uint32_t>(items - 1);
    g.threads = threads_for(threads);
    g.pieces = blocks_of(threads, g.threads);
  }
  return g;
}

RSFAST_FN RowProducts<uint64_t> products_of(const RowCounter& c, const Key& key) {
  return row_products(c.sample_low, c.input_id, c.stream_and_sample_high, key);
}

struct Row {
  RowCounter counter;
  RowProducts<uint64_t> products;  // of the counter
  uint32_t turn;
  const float* x;
  bool exists;  // no index is out of range
};

template <Draw D>
RSFAST_KERNEL_FN Row row_of(const PerturbJob& job, const Key& key, int64_t row) {
  const int64_t input = job.rows[row], sample = job.samples[row];
  const bool exists = input >= 0 && input < job.inputs && sample >= 0 && sample >> 56 == 0;
  const int64_t id = exists ? job.input_ids[input] : 0;
  const RowCounter counter = row_counter(DrawIs<D>{}, job.noise, sample, id, job.stream);
  return {counter, products_of(counter, key), turn_of(DrawIs<D>{}, job.noise, sample),
          job.x + static_cast<uint64_t>(input) * job.elements, exists && id >= 0 && id >> 32 == 0};
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

RSFAST_FN FourWords four_words(uint32_t block, const RowProducts<uint64_t>& row, const Key& key) {
  const auto w = philox(uint64_t{block}, row, key);
  return {{static_cast<uint32_t>(w.a), static_cast<uint32_t>(w.b), static_cast<uint32_t>(w.c), static_cast<uint32_t>(w.d)}};
}

// The words of elements whose groups share one: a block for each, as neighbours need not be of one.
template <bool Aligned>
RSFAST_FN FourWords words_of_groups(const PerturbGrid& g, const Row& row, uint64_t first) {
  FourWords words = {};
  for (int i = 0; i < 4; ++i) {
    const bool inside = Aligned || first + i < static_cast<uint64_t>(g.job.elements);
    const uint32_t group = inside ? as_bits(g.job.noise.each[first + i]) : 0;
    const FourWords block = four_words(group / 4, row.products, g.key);
    words.of[i] = word_of_group(group, block.of);
  }
  return words;
}

// Elements 4 four to 4 four + 3 of a row with their noise, before scale; those past its end are made of x = 0.
template <Draw D, bool Aligned, Options O>
RSFAST_KERNEL_FN Four noisy_four(const PerturbGrid& g, const Row& row, uint32_t four) {
  const PerturbJob& job = g.job;
  const uint64_t first = uint64_t{four} * 4;
  const float* each = O == Options::any ? job.noise.each : nullptr;
  const bool clamp = O == Options::any ? job.clamp : clamps(O);
  FourWords words;
  if (D == Draw::mask && each)
    words = words_of_groups<Aligned>(g, row, first);
  else
    words = four_words(four, row.products, g.key);
  const auto more = [&](uint32_t* w) {
    const FourWords made = four_words(four, products_of(more_words(row.counter), g.key), g.key);
    for (int i = 0; i < 4; ++i) w[i] = made.of[i];
  };
  Four z, y = {};
  standard_noise<float, int32_t>(DrawIs<D>{}, source_of(words.of, more, job.noise, row.turn), z.of);
  if constexpr (Aligned) {
    const Sixteen bits = reinterpret_cast<const Sixteen*>(row.x)[four];
    for (int i = 0; i < 4; ++i) y.of[i] = as_float(bits.words[i]);
  } else {
    for (int i = 0; i < 4; ++i)
      if (first + i < static_cast<uint64_t>(job.elements)) y.of[i] = row.x[first + i];
  }
  for (int i = 0; i < 4; ++i) {
    float noise_scale = job.noise.scalars[0];
    if (D != Draw::mask && each)
      noise_scale = Aligned || first + i < static_cast<uint64_t>(job.elements) ? each[first + i] : 0.0f;
    y.of[i] = noisy(DrawIs<D>{}, job, clamp, z.of[i], noise_scale, y.of[i]);
  }
  return y;
}

struct Channel {
  float scale, shift;
};

RSFAST_KERNEL_FN Channel channel_of(const PerturbJob& job, uint64_t channel) {
  return {job.scale[channel], job.shift[channel]};
}

RSFAST_KERNEL_FN Four scaled(const Four& y, const Channel& by) {
  Four made;
  for (int i = 0; i < 4; ++i) made.of[i] = fused(y.of[i], by.scale, by.shift);
  return made;
}

// The finished values, whatever the job's options.
template <Draw D, bool Aligned>
RSFAST_KERNEL_FN Four finished_four(const PerturbGrid& g, const Row& row, uint32_t four) {
  const uint64_t first = uint64_t{four} * 4;
  Four y = noisy_four<D, Aligned, Options::any>(g, row, four);
  if (g.job.scale) {
    Channel channel = channel_of(g.job, quotient(first, g.positions));
    const bool one_channel = g.positions.by % 4 == 0;
    for (int i = 0; i < 4; ++i) {
      if (!one_channel && first + i < static_cast<uint64_t>(g.job.elements))
        channel = channel_of(g.job, quotient(first + i, g.positions));
      y.of[i] = fused(y.of[i], channel.scale, channel.shift);
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

template <Type T>
RSFAST_KERNEL_FN typename Output<T>::type* row_of_out(const PerturbJob& job, int64_t row) {
  return static_cast<typename Output<T>::type*>(job.out) + row * job.elements;
}

// Item after item of a thread of block (x, y): f(item).
template <Type T, Layout L, class F>
RSFAST_KERNEL_FN void each_item(const Block& block, const PerturbGrid& g, const F& f) {
  const uint32_t threads = block.threads, items = items_of(T, L) * threads;
  const uint32_t first = static_cast<uint32_t>(block.x) * items;
  const uint32_t last = g.last_item - first < items ? g.last_item : first + items - 1;
  block.apart([&](int thread) {
    uint32_t item = first + thread;
    if (item > last) return;
    RSFAST_ROLLED
    for (;; item += threads) {
      f(item);
      if (last - item < threads) return;
    }
  });
}

// 16 bytes of out: the values of four elements, or of eight.
template <Type T>
RSFAST_KERNEL_FN Sixteen sixteen_of(const Four* y) {
  Sixteen bits;
  for (int i = 0; i < 4; ++i) {
    if constexpr (T == Type::float32)
      bits.words[i] = as_bits(y[0].of[i]);
    else
      bits.words[i] = Output<T>::pair(y[i / 2].of[i % 2 * 2], y[i / 2].of[i % 2 * 2 + 1]);
  }
  return bits;
}

// Contiguous rows: block (x, y) makes piece x of row y. Each 16 bytes lie beside those of the neighbouring thread.
template <Draw D, Type T, bool Aligned, Options O>
RSFAST_KERNEL_FN void perturb_contiguous(const Block& block, const PerturbGrid& g, const Row& row) {
  constexpr int kFours = fours_of(T);
  auto* out = row_of_out<T>(g.job, block.y);
  each_item<T, Layout::contiguous>(block, g, [&](uint32_t item) {
    if constexpr (Aligned && T != Type::float64) {
      Four y[kFours];
      RSFAST_UNROLLED
      for (int i = 0; i < kFours; ++i) {
        if constexpr (O == Options::any)
          y[i] = finished_four<D, true>(g, row, item * kFours + i);
        else
          y[i] = noisy_four<D, true, O>(g, row, item * kFours + i);
      }
      if constexpr (scales(O)) {
        const Channel channel = channel_of(g.job, quotient(item, g.channel_items));
        for (int i = 0; i < kFours; ++i) y[i] = scaled(y[i], channel);
      }
      reinterpret_cast<Sixteen*>(out)[item] = sixteen_of<T>(y);
    } else {
      for (int i = 0; i < kFours; ++i) {
        const uint64_t at = (uint64_t{item} * kFours + i) * 4, elements = g.job.elements;
        if (at >= elements) return;
        const Four y = finished_four<D, Aligned>(g, row, item * kFours + i);
        for (int j = 0; j < 4; ++j)
          if (Aligned || at + j < elements) out[at + j] = Output<T>::one(y.of[j]);
      }
    }
  });
}

// Three channels last: a thread makes the same positions of all of them.
template <Draw D, Type T, Options O>
RSFAST_KERNEL_FN void perturb_three_channels(const Block& block, const PerturbGrid& g, const Row& row) {
  constexpr int kFours = fours_of(T);
  auto* out = reinterpret_cast<Sixteen*>(row_of_out<T>(g.job, block.y));
  Channel channels[3];
  for (int c = 0; c < 3; ++c)
    if constexpr (scales(O)) channels[c] = channel_of(g.job, c);
  each_item<T, Layout::three_channels>(block, g, [&](uint32_t item) {
    Four y[3 * kFours];  // in the order of out
    for (int i = 0; i < kFours; ++i) {
      for (int c = 0; c < 3; ++c) {
        Four made = noisy_four<D, true, O>(g, row, c * g.channel_fours + (item * kFours + i));
        if constexpr (scales(O)) made = scaled(made, channels[c]);
        for (int j = 0; j < 4; ++j) y[3 * i + (3 * j + c) / 4].of[(3 * j + c) % 4] = made.of[j];
      }
    }
    for (int i = 0; i < 3; ++i) out[uint64_t{item} * 3 + i] = sixteen_of<T>(y + i * kFours);
  });
}

// Channels last: block (x, y) makes tile x of row y, some positions of some channels, in shared memory, and then writes it
// out.
template <Draw D, Type T, bool Aligned>
RSFAST_KERNEL_FN void perturb_channels_last(const Block& block, const PerturbGrid& g, const Row& row) {
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
  // Neighbouring threads take neighbouring channels: that spreads their writes over the banks.
  block.each([&](int thread) {
    for (int item = thread; item < fours * width; item += block.threads) {
      const int j = static_cast<int>(quotient(static_cast<uint32_t>(item), g.tile_channels)), c = item - j * width;
      if (c >= tile_width) continue;
      if constexpr (Aligned) {
        const uint32_t first = static_cast<uint32_t>(positions / 4) * (static_cast<uint32_t>(c0) + c) + p0 / 4;
        const Four y = finished_four<D, true>(g, row, first + j);
        for (int i = 0; i < 4; ++i) tile[(4 * j + i) * tile_width + c] = Output<T>::one(y.of[i]);
      } else {
        const uint64_t begin = (c0 + c) * positions + p0, four = begin / 4 + j;
        const int p = static_cast<int>(four * 4 - begin);
        if (p >= tile_length) continue;
        const Four y = finished_four<D, false>(g, row, static_cast<uint32_t>(four));
        for (int i = 0; i < 4; ++i)
          if (p + i >= 0 && p + i < tile_length) tile[(p + i) * tile_width + c] = Output<T>::one(y.of[i]);
      }
    }
  });
  Out* out = row_of_out<T>(g.job, block.y) + p0 * channels + c0;
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

// A row that has no input or no sample: NaN, a share of each block.
template <Type T>
RSFAST_KERNEL_FN void fill_with_nan(const Block& block, const PerturbGrid& g) {
  auto* out = row_of_out<T>(g.job, block.y);
  block.apart([&](int thread) {
    RSFAST_ROLLED
    for (int64_t i = block.x * block.threads + thread; i < g.job.elements; i += g.pieces * block.threads)
      out[i] = Output<T>::one(as_float(0x7FC00000u));
  });
}

template <Draw D, Type T, Layout L, bool Aligned, Options O>
struct PerturbKernel {
  RSFAST_MEMBER_FN static void run(const Block& block, const PerturbGrid& g) {
    const Row row = row_of<D>(g.job, g.key, block.y);
    if (!row.exists)
      fill_with_nan<T>(block, g);
    else if constexpr (L == Layout::channels_last)
      perturb_channels_last<D, T, Aligned>(block, g, row);
    else if constexpr (L == Layout::three_channels)
      perturb_three_channels<D, T, O>(block, g, row);
    else
      perturb_contiguous<D, T, Aligned, O>(block, g, row);
  }
};

template <Draw D, Type T, class F>
auto with_kernel(const PerturbGrid& g, const F& f) {
  constexpr Layout kContiguous = Layout::contiguous, kLast = Layout::channels_last, kThree = Layout::three_channels;
  if constexpr (has_options(D, T)) {
    const bool three = g.layout == kThree;
    switch (g.options) {
#define RSFAST_OPTIONS_CASE(o)                                        \
  case Options::o:                                                    \
    return three ? f(PerturbKernel<D, T, kThree, true, Options::o>{}) \
                 : f(PerturbKernel<D, T, kContiguous, true, Options::o>{});
      RSFAST_OPTIONS_CASE(none)
      RSFAST_OPTIONS_CASE(scale)
      RSFAST_OPTIONS_CASE(clamp)
      RSFAST_OPTIONS_CASE(scale_and_clamp)
#undef RSFAST_OPTIONS_CASE
      case Options::any: break;
    }
  }
  if (g.layout == kContiguous)
    return g.aligned ? f(PerturbKernel<D, T, kContiguous, true, Options::any>{})
                     : f(PerturbKernel<D, T, kContiguous, false, Options::any>{});
  return g.aligned ? f(PerturbKernel<D, T, kLast, true, Options::any>{})
                   : f(PerturbKernel<D, T, kLast, false, Options::any>{});
}

// f(PerturbKernel<...>{}) for the kernel of a grid.
template <class F>
auto with_kernel(const PerturbGrid& g, const F& f) {
  return with_draw(g.job.noise.draw, [&](auto is) {
    constexpr Draw D = decltype(is)::draw;
    switch (g.job.type) {
      case Type::float16: return with_kernel<D, Type::float16>(g, f);
      case Type::bfloat16: return with_kernel<D, Type::bfloat16>(g, f);
      case Type::float64: return with_kernel<D, Type::float64>(g, f);
      default: return with_kernel<D, Type::float32>(g, f);
    }
  });
}

}  // namespace rsfast
