// accumulate on a GPU: what each block of threads does, for CUDA and for the tests' host loop. A block takes a tile of rows
// and a group of heads. It reads the tile's logits once into shared memory. Then, for each head, the threads first share the
// classes of each row (what a row sums), and then the rows of each class (what the Tally sums): a tile of one input adds to
// each counter once.
#pragma once

#include "../accumulate.h"
#include "../jobs.h"
#include "block.h"

namespace rsfast {

constexpr int kTileThreads = 256;  // for a tile of several rows
constexpr int kRowThreads = 512;   // for one that is a single row
constexpr int kMostTileRows = 128;
constexpr int kResidentThreads = 1024;    // a multiprocessor runs at least these at once: 64 registers each are enough
constexpr int64_t kTileBytes = 48 << 10;  // of shared memory: what every device gives a block without being asked
constexpr int64_t kMaxSamples = (int64_t{1} << 33) - 1;

// Bits of n that make a Tally void, as rsfast/ops/marks.py reads them: a kernel can raise no error, and to stop would end
// the process's use of the GPU. Later additions leave them.
constexpr int64_t kRowsMark = int64_t{1} << 40;     // of every n: a slot is out of range. Its row adds nothing
constexpr int64_t kFullMark = int64_t{1} << 41;     // more than kMaxSamples
constexpr int64_t kTrackedMark = int64_t{1} << 42;  // a tracked class is out of range. It adds nothing
constexpr int64_t kUnmarked = kRowsMark - 1;

struct Best {  // of some classes of a row
  float logit;
  int32_t place;    // its class, the lowest of equals; K if there is none
  int32_t ordered;  // 0 if one of them is NaN
};

// Shared memory of a block, after its logits.
struct Scratch {
  union {
    struct {
      uint64_t totals[kRowThreads], others[kRowThreads];
    };
    Best bests[kRowThreads];
  };
  uint64_t factors[kMostTileRows];   // softmax: the factor. sparsemax: the threshold
  uint64_t supports[kMostTileRows];  // sparsemax: the number of classes above it
  int64_t slots[kMostTileRows];      // -1 where it is out of range
  float maxima[kMostTileRows];
  int32_t votes[kMostTileRows];  // the class, or K
  int32_t ends[kMostTileRows];   // one past the last of the neighbours that share the row's slot
};

struct AccumulateGrid {
  AccumulateJob job;
  int rows;                        // of a tile
  int row_threads, row_shift;      // threads that share a row, a power of 2, and its logarithm
  int class_threads, class_shift;  // the same of a class
  int64_t pitch;                   // of a row in shared memory: odd, so that threads on different rows meet different banks
  bool staged;  // in shared memory; rows that are too long for it are read again for every head, mostly from L2
  int64_t tiles, head_groups, group_heads;
  int threads;
  size_t shared;
};

inline AccumulateGrid make_grid(const AccumulateJob& job, int multiprocessors, int64_t most_shared) {
  AccumulateGrid g = {};
  g.job = job;
  g.pitch = job.classes | 1;
  const int64_t scratch = sizeof(Scratch) + 8;
  const auto bytes = [&g](int rows) { return rows * g.pitch * static_cast<int64_t>(sizeof(float)); };
  g.rows = kMostTileRows;
  while (g.rows >= 8 && bytes(g.rows) + scratch > kTileBytes) g.rows /= 2;
  if (g.rows < 8) g.rows = 1;
  g.threads = g.rows == 1 ? kRowThreads : kTileThreads;
  while (g.rows << g.row_shift < g.threads) ++g.row_shift;
  while (1 << g.class_shift < g.rows && job.classes << (g.class_shift + 1) <= g.threads) ++g.class_shift;
  g.row_threads = 1 << g.row_shift;
  g.class_threads = 1 << g.class_shift;
  g.staged = bytes(g.rows) + scratch <= most_shared;
  g.shared = scratch + (g.staged ? bytes(g.rows) : 0);
  g.tiles = blocks_of(job.batch, g.rows);
  // Enough groups of heads to fill the device. Where there are several, each reads the logits: batches that are too small to
  // fill it otherwise are in L2.
  const int64_t most = job.heads < 65535 ? job.heads : 65535;
  const int64_t wanted = blocks_of(int64_t{multiprocessors} * (kResidentThreads / g.threads), g.tiles);
  g.head_groups = wanted < most ? wanted : most > 1 ? most : 1;
  g.group_heads = blocks_of(job.heads, g.head_groups);
  return g;
}

// partials[thread] of every `group` neighbouring threads, a power of 2, are combined into the first.
template <class V, class Combine>
RSFAST_KERNEL_FN void reduce(const Block& block, V* partials, int group, const Combine& combine) {
  const int mask = group - 1;
  while (group > 1) {
    const int fan = group < 8 ? group : 8;
    group /= fan;
    block.each([&](int thread) {
      if ((thread & mask) >= group) return;
      V total = partials[thread];
      for (int i = 1; i < fan; ++i) total = combine(total, partials[thread + i * group]);
      partials[thread] = total;
    });
  }
}

RSFAST_KERNEL_FN void add_up(const Block& block, Scratch& s, int group, bool both) {
  const auto plus = [](uint64_t a, uint64_t b) { return a + b; };
  reduce(block, s.totals, group, plus);
  if (both) reduce(block, s.others, group, plus);
}

// What softmax and sparsemax sum, from a logit's distance to the row's maximum; 0 where that is NaN.

RSFAST_KERNEL_FN uint64_t softmax_units(float a) {
  if (!(a >= kNegligible && a <= 0.0f))
    return 0;  // above 0 only where a NaN came before the maximum: such a row does not vote
  int32_t mantissa, shift;
  exp_parts(a, mantissa, shift);
  return exp_units(static_cast<uint64_t>(mantissa), static_cast<uint64_t>(shift));
}

RSFAST_KERNEL_FN uint64_t sparsemax_units(float a) { return static_cast<uint64_t>(sparsemax_mantissa(a)) << 16; }

template <class T>
struct Tile {
  const AccumulateGrid& g;
  Scratch& s;
  float* staged;
  int64_t first;  // row of the batch
  int rows;       // fewer than g.rows at the end of the batch

  RSFAST_MEMBER_FN float read(int row, int64_t k) const {
    return read_logit(static_cast<const T*>(g.job.logits) + (first + row) * g.job.row_stride + k * g.job.class_stride);
  }
  RSFAST_MEMBER_FN float logit(int row, int64_t k) const { return g.staged ? staged[row * g.pitch + k] : read(row, k); }
  RSFAST_MEMBER_FN bool votes(int row) const { return s.votes[row] < g.job.classes; }

  // f(k) for the thread's share of the classes of its row, if that row votes.
  template <class F>
  RSFAST_MEMBER_FN void classes(int thread, const F& f) const {
    const int row = thread >> g.row_shift;
    if (row >= rows || !votes(row)) return;
    for (int64_t k = thread & (g.row_threads - 1); k < g.job.classes; k += g.row_threads) f(row, k);
  }
};

// Read the logits, and find the class that each row votes for. A row without a slot does not vote.
template <class T>
RSFAST_KERNEL_FN void read_tile(const Block& block, const Tile<T>& tile) {
  const AccumulateGrid& g = tile.g;
  Scratch& s = tile.s;
  const int32_t none = static_cast<int32_t>(g.job.classes);
  block.each([&](int thread) {
    const int row = thread >> g.row_shift;
    Best best = {0.0f, none, 1};
    if (row < tile.rows)
      for (int64_t k = thread & (g.row_threads - 1); k < g.job.classes; k += g.row_threads) {
        const float logit = tile.read(row, k);
        if (g.staged) tile.staged[row * g.pitch + k] = logit;
        best.ordered &= logit == logit;
        if (best.place == none || logit > best.logit) best.logit = logit, best.place = static_cast<int32_t>(k);
      }
    s.bests[thread] = best;
  });
  reduce(block, s.bests, g.row_threads, [none](const Best& a, const Best& b) {
    const bool second =
        a.place == none || (b.place != none && (b.logit > a.logit || (b.logit == a.logit && b.place < a.place)));
    Best best = second ? b : a;
    best.ordered = a.ordered & b.ordered;
    return best;
  });
  const bool wrong = block.any([&](int row) {
    if (row >= tile.rows) return false;
    const Best best = s.bests[row << g.row_shift];
    const int64_t slot = g.job.slots[tile.first + row];
    const bool known = slot >= 0 && slot < g.job.inputs;
    s.slots[row] = known ? slot : -1;
    s.maxima[row] = best.logit;
    s.votes[row] = known && best.ordered && is_finite(best.logit) ? best.place : none;
    return !known;
  });
  if (wrong && block.y == 0)
    block.apart([&](int thread) {
      for (int64_t i = thread; i < g.job.inputs; i += g.threads) or_atomically(g.job.n + i, kRowsMark);
    });
  block.each([&](int row) {
    if (row >= tile.rows) return;
    const int64_t slot = s.slots[row];
    int end = tile.rows;
    for (int i = tile.rows - 1; i > row; --i) end = s.slots[i] == slot ? end : i;  // no load waits for the one before
    s.ends[row] = end;
  });
}

// n and counts. The first row of a slot adds all rows of it, the first of those with one vote all that share it.
template <class T>
RSFAST_KERNEL_FN void count_votes(const Block& block, const Tile<T>& tile) {
  const AccumulateJob& job = tile.g.job;
  const Scratch& s = tile.s;
  block.each([&](int row) {
    if (row >= tile.rows || s.slots[row] < 0) return;
    const int64_t slot = s.slots[row];
    const int32_t vote = s.votes[row];
    int same_slot = 0, same_vote = 0;
    bool first_of_slot = true, first_of_vote = true;
    for (int i = 0; i < tile.rows; ++i) {
      const bool shares_slot = s.slots[i] == slot, shares_vote = shares_slot & (s.votes[i] == vote);
      same_slot += shares_slot, same_vote += shares_vote;
      first_of_slot &= !shares_slot | (i >= row), first_of_vote &= !shares_vote | (i >= row);
    }
    if (first_of_slot) {
      const int64_t before = add_atomically(job.n + slot, same_slot) & kUnmarked;
      if (before + same_slot > kMaxSamples) or_atomically(job.n + slot, kFullMark);
    }
    if (first_of_vote) add_atomically(job.counts + slot * (job.classes + 1) + vote, same_vote);
  });
}

template <class T>
RSFAST_KERNEL_FN void find_softmax_factors(const Block& block, const Tile<T>& tile, float scale) {
  Scratch& s = tile.s;
  block.each([&](int thread) {
    uint64_t total = 0;
    tile.classes(thread, [&](int row, int64_t k) { total += softmax_units((tile.logit(row, k) - s.maxima[row]) * scale); });
    s.totals[thread] = total;
  });
  add_up(block, s, tile.g.row_threads, false);
  block.each([&](int row) {
    if (row < tile.rows) s.factors[row] = tile.votes(row) ? softmax_factor(s.totals[row << tile.g.row_shift]) : 0;
  });
}

template <class T>
RSFAST_KERNEL_FN void find_sparsemax_thresholds(const Block& block, const Tile<T>& tile, float scale) {
  Scratch& s = tile.s;
  block.each([&](int row) {
    if (row < tile.rows) s.factors[row] = tile.votes(row) ? 0 : ~uint64_t{0}, s.supports[row] = 0;
  });
  bool dropped = true;
  while (dropped) {  // Michelot's iteration: the first time from all that are positive
    block.each([&](int thread) {
      uint64_t total = 0, count = 0;
      tile.classes(thread, [&](int row, int64_t k) {
        const uint64_t units = sparsemax_units((tile.logit(row, k) - s.maxima[row]) * scale);
        if (units > s.factors[row]) total += units, ++count;
      });
      s.totals[thread] = total, s.others[thread] = count;
    });
    add_up(block, s, tile.g.row_threads, true);
    dropped = block.any([&](int row) {
      if (row >= tile.rows || !tile.votes(row)) return false;
      const uint64_t total = s.totals[row << tile.g.row_shift], count = s.others[row << tile.g.row_shift];
      const bool changed = count != s.supports[row];
      s.factors[row] = changed ? sparsemax_floor(total, count) : sparsemax_ceiling(total, count);
      s.supports[row] = count;
      return changed;
    });
  }
}

// The histograms of one head.
template <class T, class Score>
RSFAST_KERNEL_FN void add_bins(const Block& block, const Tile<T>& tile, int64_t head, const Score& score) {
  const AccumulateJob& job = tile.g.job;
  const int tracked = static_cast<int>(job.tracked_classes);
  block.each([&](int thread) {
    for (int i = thread; i < tile.rows * tracked; i += tile.g.threads) {
      const int row = i / tracked;
      const int64_t slot = tile.s.slots[row];
      if (slot < 0) continue;
      const int64_t place = (slot * job.heads + head) * tracked + i % tracked, k = job.tracked[place];
      if (k < 0 || k >= job.classes) {
        or_atomically(job.n + slot, kTrackedMark);
        continue;
      }
      const uint64_t q = score(row, k);
      const int64_t bin = place * kBins + score_bin(static_cast<int32_t>(q));
      add_atomically(job.bin_counts + bin, 1);
      if (q > 0) add_atomically(job.bin_sums + bin, static_cast<int64_t>(q));
    }
  });
}

// The sums, squares and histograms of one head. `score` is a function of (row, k), and 0 for a row that does not vote.
template <class T, class Score>
RSFAST_KERNEL_FN void add_scores(const Block& block, const Tile<T>& tile, int64_t head, const Score& score) {
  const AccumulateGrid& g = tile.g;
  const AccumulateJob& job = g.job;
  Scratch& s = tile.s;
  for (int begin = 0, end; begin < tile.rows; begin = end) {
    end = s.ends[begin];
    if (s.slots[begin] < 0) continue;
    const int64_t place = (s.slots[begin] * job.heads + head) * job.classes;
    const auto add = [&](int64_t k, uint64_t sum, uint64_t squares) {
      if (sum == 0) return;  // then no score has a square
      add_atomically(job.sums + place + k, static_cast<int64_t>(sum));
      add_atomically(job.squares + place + k, static_cast<int64_t>(squares));
    };
    block.each([&](int thread) {
      s.totals[thread] = s.others[thread] = 0;
      for (int64_t k = thread >> g.class_shift; k < job.classes; k += g.threads >> g.class_shift) {
        uint64_t sum = 0, squares = 0;
        for (int row = begin + (thread & (g.class_threads - 1)); row < end; row += g.class_threads) {
          const uint64_t q = score(row, k);
          sum += q, squares += square_score(q);
        }
        if (g.class_threads == 1)
          add(k, sum, squares);
        else
          s.totals[thread] = sum, s.others[thread] = squares;  // each thread has one class at most
      }
    });
    if (g.class_threads == 1) continue;
    add_up(block, s, g.class_threads, true);
    block.each([&](int thread) {
      const int64_t k = thread >> g.class_shift;
      if ((thread & (g.class_threads - 1)) == 0 && k < job.classes) add(k, s.totals[thread], s.others[thread]);
    });
  }
  if (job.tracked_classes > 0) add_bins(block, tile, head, score);
}

template <class T>
RSFAST_KERNEL_FN void accumulate_tile(const Block& block, const AccumulateGrid& g) {
  const int64_t first = block.x * g.rows, left = g.job.batch - first;
  float* staged = reinterpret_cast<float*>(block.shared + (sizeof(Scratch) + 7) / 8 * 8);
  const Tile<T> tile = {g, *reinterpret_cast<Scratch*>(block.shared), staged, first,
                        static_cast<int>(left < g.rows ? left : g.rows)};
  const Scratch& s = tile.s;
  read_tile(block, tile);
  if (block.y == 0) count_votes(block, tile);
  const int64_t begin = block.y * g.group_heads, end = begin + g.group_heads;
  for (int64_t h = begin; h < end && h < g.job.heads; ++h) {
    const HeadParameters head = g.job.parameters[h];
    switch (kind_of(head)) {
      case HeadKind::softmax:
        find_softmax_factors(block, tile, head.scale);
        add_scores(block, tile, h, [&](int row, int64_t k) {
          return softmax_score(softmax_units((tile.logit(row, k) - s.maxima[row]) * head.scale), s.factors[row]);
        });
        break;
      case HeadKind::sparsemax:
        find_sparsemax_thresholds(block, tile, head.scale);
        add_scores(block, tile, h, [&](int row, int64_t k) {
          const uint64_t units = sparsemax_units((tile.logit(row, k) - s.maxima[row]) * head.scale);
          return units > s.factors[row] ? (units - s.factors[row]) >> 10 : 0;
        });
        break;
      default:
        add_scores(block, tile, h, [&](int row, int64_t k) {
          const uint64_t q = pointwise_score(tile.logit(row, k), head);
          return tile.votes(row) ? q : 0;
        });
    }
  }
}

}  // namespace rsfast
