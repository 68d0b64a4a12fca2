// accumulate on the CPU: accumulate.h with one row of logits a lane. Rows are taken kLanes at a time (a tile), laid out
// class by class, so that everything a row sums is summed down a lane and nothing crosses lanes until the Tally.
#include "../accumulate.h"

#include <utility>

#include "kernels.h"

namespace rsfast {
namespace {

constexpr int kHalf = kLanes / 2;

struct Pair {  // kLanes 64-bit lanes: the even and the odd ones, which takes no moves between lanes
  Wides even, odd;
};

RSFAST_FN Pair widen(Ints v) {  // of 0 and above
  const Wides words = reinterpret_cast<Wides>(v);
  return {words & 0xFFFFFFFFu, words >> 32};
}

RSFAST_FN Ints narrow(const Pair& v) { return reinterpret_cast<Ints>(v.even | v.odd << 32); }

template <class V>
RSFAST_FN bool any(V mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256(reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256i>(mask)) == 0;
#else
  const Wides words = reinterpret_cast<Wides>(mask);
  uint64_t set = 0;
  for (int i = 0; i < kHalf; ++i) set |= words[i];
  return set != 0;
#endif
}

RSFAST_FN uint32_t lanes_of(Ints mask) {  // a bit a lane
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
#else
  uint32_t set = 0;
  for (int i = 0; i < kLanes; ++i) set |= static_cast<uint32_t>(mask[i] & 1) << i;
  return set;
#endif
}

RSFAST_FN uint64_t sum(Wides v) {
  uint64_t total = 0;
  for (int i = 0; i < kHalf; ++i) total += v[i];
  return total;
}

constexpr int kLeaders = 64;         // a row, at most
constexpr int kHeadsWorthRanks = 8;  // with fewer heads, finding leaders takes longer than doing without

// The largest logits of every row of a tile, those above its cutoff, in descending order, and their classes. A row that
// has fewer than `count` is filled up with the cutoff. Scores ascend with logits: where a head scores the cutoff 0, the
// leaders are all that it does not.
struct Leaders {
  int64_t count;
  Floats cutoff;
  Floats logits[kLeaders];
  Ints classes[kLeaders];
};

// The working memory of one thread. A chunk is up to `tiles` tiles of one slot.
struct Scratch {
  int64_t stride;         // of a tile of logits: the classes, or kLanes if they are fewer
  Floats* logits;         // [tiles, stride]
  Floats* maximum;        // [tiles]
  Ints* valid;            // [tiles]: all ones where the lane holds a row that votes
  Ints* votes;            // [tiles]: classes, of a row that is not valid the number of classes
  Leaders* leaders;       // [tiles], if they are worth finding
  int64_t* counts;        // [classes + 1]: votes for a slot whose rows threads share
  Pair* units;            // [classes]: of the logits in `active`
  Ints* mantissas;        // [classes]: the same for sparsemax
  int32_t* active;        // [classes]
  Wides *sums, *squares;  // [classes]: of one head over the chunk
};

RSFAST_FN int64_t stride_of(const AccumulateJob& job) { return job.classes < kLanes ? kLanes : job.classes; }

RSFAST_FN int64_t tiles_of(const AccumulateJob& job) {  // as many as leave the logits in L2
  const int64_t fit = (int64_t{256} << 10) / (stride_of(job) * static_cast<int64_t>(sizeof(Floats)));
  return fit < 1 ? 1 : fit > 16 ? 16 : fit;
}

template <class T>
RSFAST_FN T* take(char*& at, int64_t count) {
  T* result = reinterpret_cast<T*>(at);
  at += (count * sizeof(T) + 63) / 64 * 64;
  return result;
}

RSFAST_FN Scratch lay_out(const AccumulateJob& job, char*& at) {
  at += (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64;
  const int64_t tiles = tiles_of(job), k = job.classes;
  Scratch s;
  s.stride = stride_of(job);
  s.logits = take<Floats>(at, tiles * s.stride);
  s.maximum = take<Floats>(at, tiles);
  s.valid = take<Ints>(at, tiles);
  s.votes = take<Ints>(at, tiles);
  s.leaders = take<Leaders>(at, tiles);
  s.counts = take<int64_t>(at, k + 1);
  s.units = take<Pair>(at, k);
  s.mantissas = take<Ints>(at, k);
  s.active = take<int32_t>(at, k);
  s.sums = take<Wides>(at, k);
  s.squares = take<Wides>(at, k);
  return s;
}

// Makes the rows of a square of lanes its columns: lane i of v[j] and lane j of v[i] change places, D and then fewer apart.

template <int D, int... I>
RSFAST_FN void exchange(Floats& a, Floats& b, std::integer_sequence<int, I...>) {
  const Floats first = a;
  a = __builtin_shufflevector(first, b, (I & D ? kLanes + I - D : I)...);
  b = __builtin_shufflevector(first, b, (I & D ? kLanes + I : I + D)...);
}

template <int D>
RSFAST_FN void transpose(Floats* v) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (!(i & D)) exchange<D>(v[i], v[i + D], std::make_integer_sequence<int, kLanes>{});
  if constexpr (D > 1) transpose<D / 2>(v);
}

// kLanes neighbours. The compiler makes vectors of the loop, but not where there are cases.
template <class T>
RSFAST_FN Floats read_logits(const T* from) {
  float values[kLanes];
  for (int i = 0; i < kLanes; ++i) values[i] = read_logit(from + i);
  return load<Floats>(values);
}
RSFAST_FN Floats read_logits(const Float16* from) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
  return float_of_half(__builtin_convertvector(load<Halves>(from), Bits));
}

// A square of logits: kLanes classes of the rows of a tile, which may be beyond the last class.
template <class T>
void read_square(const T* const* rows, int64_t k, Floats* logits) {
  Floats square[kLanes];
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes; ++lane) square[lane] = read_logits(rows[lane] + k);
  transpose<kHalf>(square);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) logits[k + i] = square[i];
}

// The rows `first` and after, in `order`; lanes beyond `count` hold the last of them and are not valid.
template <class T>
void read_tile(const AccumulateJob& job, const int64_t* order, int64_t first, int count, Floats* logits) {
  const T *base = static_cast<const T*>(job.logits), *rows[kLanes], *last = base;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t i = first + (lane < count ? lane : count - 1);
    rows[lane] = base + (order ? order[i] : i) * job.row_stride;
    last = rows[lane] > last ? rows[lane] : last;
  }
  const bool inside = last + kLanes <= base + (job.batch - 1) * job.row_stride + job.classes;
  if (job.class_stride == 1 && job.classes > 4 && inside) {
    for (int64_t k = 0; k + kLanes < job.classes; k += kLanes) read_square(rows, k, logits);
    // The last square has no more than the last class, unless classes are fewer than lanes.
    read_square(rows, job.classes < kLanes ? 0 : job.classes - kLanes, logits);
    return;
  }
  float* to = reinterpret_cast<float*>(logits);
  for (int64_t k = 0; k < job.classes; ++k)
    for (int lane = 0; lane < kLanes; ++lane) *to++ = read_logit(rows[lane] + k * job.class_stride);
}

RSFAST_FN void find_votes(const AccumulateJob& job, const Scratch& s, int64_t t, int count) {
  const Floats* logits = s.logits + t * s.stride;
  Ints lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  Ints valid = lanes < count;
  Floats top = logits[0];
  Ints vote{};
  for (int32_t k = 0; k < job.classes; ++k) {
    const Ints above = logits[k] > top;
    top = above ? logits[k] : top;
    vote = above ? Ints{} + k : vote;
    valid &= logits[k] == logits[k];  // false of NaN
  }
  valid &= is_finite(top);
  s.maximum[t] = top, s.valid[t] = valid, s.votes[t] = valid ? vote : Ints{} + static_cast<int32_t>(job.classes);
}

template <class T>
void read_chunk(const AccumulateJob& job, const int64_t* order, int64_t begin, int64_t rows, const Scratch& s) {
  const auto count = [&](int64_t t) { return static_cast<int>(rows - t * kLanes < kLanes ? rows - t * kLanes : kLanes); };
  for (int64_t t = 0; t * kLanes < rows; ++t)
    read_tile<T>(job, order, begin + t * kLanes, count(t), s.logits + t * s.stride);
  // Not at once: a load of a vector waits for stores of its elements.
  for (int64_t t = 0; t * kLanes < rows; ++t) find_votes(job, s, t, count(t));
}

RSFAST_FN void read_chunk(const AccumulateJob& job, const int64_t* order, int64_t begin, int64_t rows, const Scratch& s) {
  switch (job.type) {
    case Type::float16: return read_chunk<Float16>(job, order, begin, rows, s);
    case Type::bfloat16: return read_chunk<BFloat16>(job, order, begin, rows, s);
    case Type::float64: return read_chunk<double>(job, order, begin, rows, s);
    default: return read_chunk<float>(job, order, begin, rows, s);
  }
}

void count_votes(const AccumulateJob& job, const Scratch& s, int64_t rows, int64_t* counts) {
  const int64_t tiles = rows / kLanes;
  int64_t done = 0;
  if (job.classes < 4 * tiles) {  // else the sums over lanes would take longer
    for (int32_t k = 0; k <= job.classes; ++k) {
      Ints count{};
      for (int64_t t = 0; t < tiles; ++t) count -= s.votes[t] == k;
      int32_t total = 0;
      for (int lane = 0; lane < kLanes; ++lane) total += count[lane];
      counts[k] += total;
    }
    done = tiles * kLanes;
  }
  const int32_t* votes = reinterpret_cast<const int32_t*>(s.votes);
  for (; done < rows; ++done) ++counts[votes[done]];
}

// Of a slot that other threads may count for at the same time.
void count_shared_votes(const AccumulateJob& job, const Scratch& s, int64_t slot, int64_t rows) {
  for (int64_t k = 0; k <= job.classes; ++k) s.counts[k] = 0;
  count_votes(job, s, rows, s.counts);
  int64_t* counts = job.counts + slot * (job.classes + 1);
  for (int64_t k = 0; k <= job.classes; ++k)
    if (s.counts[k]) __atomic_fetch_add(counts + k, s.counts[k], __ATOMIC_RELAXED);
  __atomic_fetch_add(job.n + slot, rows, __ATOMIC_RELAXED);
}

// The lowest cutoffs that leave no row more than kLeaders classes, as nearly as the first bits of their distances to the
// maximum say: exponent and four of the mantissa.
RSFAST_FN Floats find_cutoff(const Floats* logits, int64_t classes, Floats maximum) {
  Bits distance{};
  for (uint32_t bit = 1u << 30; bit >= 1u << 19; bit >>= 1) {
    const Floats cutoff = maximum - as_float(distance | bit);
    Ints count{};
    for (int64_t k = 0; k < classes; ++k) count -= ~(logits[k] <= cutoff);  // all, if the cutoff is NaN
    distance |= (Bits)(count <= kLeaders) & bit;
  }
  return maximum - as_float(distance);
}

// Sorts the first `count` leaders by Batcher's odd-even merges (1968), every row at once.
void sort(Leaders& leaders) {
  const auto order = [&leaders](int64_t i, int64_t j) {
    Floats *x = leaders.logits + i, *y = leaders.logits + j;
    Ints *a = leaders.classes + i, *b = leaders.classes + j;
    const Floats above = *x, below = *y;
    const Ints first = *a, second = *b, swap = above < below;
    *x = swap ? below : above, *y = swap ? above : below;
    *a = swap ? second : first, *b = swap ? first : second;
  };
  const int64_t n = leaders.count;
  for (int64_t run = 1; run < n; run *= 2)
    for (int64_t step = run; step > 0; step /= 2)
      for (int64_t j = step % run; j + step < n; j += 2 * step)
        for (int64_t i = j; i < j + step && i + step < n; ++i)
          if ((i ^ (i + step)) < 2 * run) order(i, i + step);  // of the same two runs, which are powers of 2
}

void find_leaders(const AccumulateJob& job, const Scratch& s, int64_t t) {
  const Floats *logits = s.logits + t * s.stride, lowest = Floats{} - __builtin_inff();
  Leaders& leaders = s.leaders[t];
  const Floats cutoff = job.classes > kLeaders ? find_cutoff(logits, job.classes, s.maximum[t]) : lowest;
  leaders.cutoff = cutoff, leaders.count = 0;
  int64_t counts[kLanes] = {};
  for (int64_t k = 0; k < job.classes; ++k) {
    for (uint32_t left = lanes_of(logits[k] > cutoff); left; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      const int64_t i = counts[lane]++;
      if (i == leaders.count) leaders.logits[i] = cutoff, leaders.classes[i] = Ints{}, ++leaders.count;
      reinterpret_cast<float*>(leaders.logits + i)[lane] = reinterpret_cast<const float*>(logits + k)[lane];
      reinterpret_cast<int32_t*>(leaders.classes + i)[lane] = static_cast<int32_t>(k);
    }
  }
  sort(leaders);
}

// Logits of the rows of a tile: of class i in logits[i], or of leaders, whose classes then differ by lane.
template <bool kRanked>
struct Tile {
  const Floats* logits;
  const Ints* classes;  // of leaders
  int64_t count;
  Floats maximum;
  Ints valid;
};

// Of one head, over a chunk.
struct Sums {
  Wides *lanes, *lane_squares;  // [classes], down the lanes, where `started`
  int64_t *sums, *squares;      // [classes]: of the Tally
  int64_t classes;
  bool started;
};

void start_lanes(Sums& into) {
  if (into.started) return;
  into.started = true;
  for (int64_t k = 0; k < into.classes; ++k) into.lanes[k] = into.lane_squares[k] = Wides{};
}

void add_lanes(const Sums& into) {
  if (!into.started) return;
  for (int64_t k = 0; k < into.classes; ++k) {
    into.sums[k] += static_cast<int64_t>(sum(into.lanes[k]));
    into.squares[k] += static_cast<int64_t>(sum(into.lane_squares[k]));
  }
}

template <bool kRanked>
RSFAST_FN void add(const Sums& into, const Tile<kRanked>& tile, int64_t i, const Pair& score) {
  const Pair square = {square_score(score.even), square_score(score.odd)};
  if constexpr (!kRanked) {
    into.lanes[i] += score.even + score.odd;
    into.lane_squares[i] += square.even + square.odd;
    return;
  }
  const int32_t* classes = reinterpret_cast<const int32_t*>(tile.classes + i);
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes; ++lane) {
    into.sums[classes[lane]] += (lane % 2 ? score.odd : score.even)[lane / 2];
    into.squares[classes[lane]] += (lane % 2 ? square.odd : square.even)[lane / 2];
  }
}

RSFAST_FN Pair softmax_units(Floats a, Ints counts) {
  Ints mantissa, shift;
  exp_parts(a, mantissa, shift);
  const Pair m = widen(mantissa & counts), n = widen(shift & counts);
  return {exp_units(m.even, n.even), exp_units(m.odd, n.odd)};
}

template <bool kRanked>
RSFAST_FN Ints not_negligible(const Tile<kRanked>& tile, Floats logits, float scale) {
  return ((logits - tile.maximum) * scale >= kNegligible) & tile.valid;
}

template <bool kRanked>
Pair add_softmax(const Scratch& s, const Tile<kRanked>& tile, float scale, const Sums& into) {
  // Rows that are not valid get a total of 1, so that there is something to divide by; their units are 0 all the same.
  const Pair spare = widen(~tile.valid & 1);
  Pair total = {spare.even * kOne, spare.odd * kOne};
  int64_t active = 0;
  for (int64_t i = 0; i < tile.count; ++i) {
    const Ints counts = not_negligible(tile, tile.logits[i], scale);
    if (!any(counts)) {
      if (kRanked) break;  // they descend
      continue;
    }
    const Pair units = softmax_units((tile.logits[i] - tile.maximum) * scale, counts);
    total.even += units.even;
    total.odd += units.odd;
    s.units[active] = units;
    s.active[active++] = static_cast<int32_t>(i);
  }
  const Pair factor = {softmax_factor(total.even), softmax_factor(total.odd)};
  for (int64_t i = 0; i < active; ++i)
    add(into, tile, s.active[i], {softmax_score(s.units[i].even, factor.even), softmax_score(s.units[i].odd, factor.odd)});
  return factor;
}

constexpr int kMantissas = 24;  // bits after the point of a sparsemax_mantissa

template <bool kRanked>
RSFAST_FN Ints mantissa_of(const Tile<kRanked>& tile, Floats logits, float scale) {
  return sparsemax_mantissa((logits - tile.maximum) * scale) & tile.valid;
}

RSFAST_FN Pair sparsemax_units(Ints mantissa) {
  const Pair m = widen(mantissa);
  return {m.even << 16, m.odd << 16};
}

RSFAST_FN Wides sparsemax_score(Wides units, Wides threshold) {
  return ((units - threshold) & reinterpret_cast<Wides>(units > threshold)) >> 10;
}

RSFAST_FN Pair sparsemax_score(const Pair& units, const Pair& threshold) {
  return {sparsemax_score(units.even, threshold.even), sparsemax_score(units.odd, threshold.odd)};
}

// The support of every row of a tile: the sum of its mantissas, and their number. `active` counts the logits that any row
// may have in it: the first so many, or those in s.active.
struct Support {
  Pair total, count;
  int64_t active;
};

// Of leaders: a class belongs to the support if 1 + i * its unit is above the sum of the i largest, itself the last (Martins
// and Astudillo 2016). Returns false if the cutoff would belong to it.
bool find_support(const Tile<true>& tile, Floats cutoff, float scale, Support& found) {
  constexpr int32_t one = 1 << kMantissas;
  Ints sum{}, total{}, count{};
  int64_t i = 0;
  for (; i < tile.count; ++i) {
    const Ints mantissa = mantissa_of(tile, tile.logits[i], scale);
    sum += mantissa;
    const Ints belongs = (mantissa * static_cast<int32_t>(i + 1) > sum - one) & tile.valid;
    if (!any(belongs)) break;
    total += mantissa & belongs, count -= belongs;
  }
  found = {widen(total), widen(count), i};
  return !any((mantissa_of(tile, cutoff, scale) * count > total - one) & tile.valid);
}

// Of all classes, by Michelot's iteration. m > floor(excess / count) is m * count > excess, without the division.
void find_support(const Scratch& s, const Tile<false>& tile, float scale, Support& found) {
  constexpr uint64_t one = uint64_t{1} << kMantissas;
  Pair total{}, count{};
  int64_t active = 0;
  for (int64_t i = 0; i < tile.count; ++i) {
    const Ints mantissa = mantissa_of(tile, tile.logits[i], scale), counts = mantissa > 0;
    if (!any(counts)) continue;
    const Pair m = widen(mantissa), n = widen(counts & 1);
    total.even += m.even, total.odd += m.odd;
    count.even += n.even, count.odd += n.odd;
    s.mantissas[active] = mantissa;
    s.active[active++] = static_cast<int32_t>(i);
  }
  for (bool dropped = true; dropped;) {
    const Pair before = count, excess = {total.even - one, total.odd - one};
    total = count = Pair{};
    for (int64_t i = 0; i < active; ++i) {
      const Pair m = widen(s.mantissas[i]);
      const Wides low = reinterpret_cast<Wides>(multiply_wide(m.even, before.even) > excess.even);
      const Wides high = reinterpret_cast<Wides>(multiply_wide(m.odd, before.odd) > excess.odd);
      total.even += m.even & low, total.odd += m.odd & high;
      count.even -= low, count.odd -= high;
    }
    dropped = any((before.even ^ count.even) | (before.odd ^ count.odd));
  }
  found = {total, count, active};
}

// Of the first `count` logits of a tile, or of those in `active`.
template <bool kRanked>
Pair add_sparsemax(const Tile<kRanked>& tile, int64_t count, const int32_t* active, float scale, const Support& found,
                   const Sums& into) {
  const Pair spare = widen(~tile.valid & 1);  // as above
  const Pair total = {(found.total.even << 16) + spare.even * kOne, (found.total.odd << 16) + spare.odd * kOne};
  const Pair threshold = {sparsemax_ceiling(total.even, found.count.even + spare.even),
                          sparsemax_ceiling(total.odd, found.count.odd + spare.odd)};
  for (int64_t j = 0; j < count; ++j) {
    const int64_t i = active ? active[j] : j;
    const Pair units = sparsemax_units(mantissa_of(tile, tile.logits[i], scale));
    if (any((units.even > threshold.even) | (units.odd > threshold.odd)))
      add(into, tile, i, sparsemax_score(units, threshold));
  }
  return threshold;
}

void add_pointwise(const Tile<false>& tile, const HeadParameters& head, const Sums& into) {
  for (int64_t k = 0; k < tile.count; ++k) add(into, tile, k, widen(pointwise_score(tile.logits[k], head) & tile.valid));
}

// Most scores are near 0 or 1 at low temperatures: those of the first and of the last bin are added up in the lanes.
RSFAST_FN void add_to_histogram(Ints score, int64_t rows, int64_t* counts, int64_t* sums) {
  const Ints bin = score_bin(score);
  uint32_t left = rows < kLanes ? (1u << rows) - 1 : (1u << kLanes) - 1;
  for (const int32_t end : {0, kBins - 1}) {
    const uint32_t here = lanes_of(bin == end) & left;
    if (!here) continue;
    const Pair scores = widen(score & (bin == end));  // of lanes without a row, 0
    counts[end] += __builtin_popcount(here);
    sums[end] += static_cast<int64_t>(sum(scores.even + scores.odd));
    left &= ~here;
  }
  int32_t bins[kLanes], scores[kLanes];
  store(bins, bin), store(scores, score);
  for (; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    ++counts[bins[lane]];
    sums[bins[lane]] += scores[lane];
  }
}

// The histograms of one head, of the first `rows` rows of a tile. `found` is the softmax factor or the sparsemax threshold.
// The scores are made a second time, so that the loops over all classes need not keep them.
void add_bins(const AccumulateJob& job, const Scratch& s, int64_t slot, int64_t h, int64_t t, int64_t rows,
              const Pair& found) {
  const HeadParameters& head = job.parameters[h];
  const Ints valid = s.valid[t];
  const int64_t first = (slot * job.heads + h) * job.tracked_classes;
  for (int64_t c = first; c < first + job.tracked_classes; ++c) {
    const Floats logit = s.logits[t * s.stride + job.tracked[c]], a = (logit - s.maximum[t]) * head.scale;
    Ints score{};
    switch (kind_of(head)) {
      case HeadKind::softmax: {
        const Pair units = softmax_units(a, (a >= kNegligible) & valid);
        score = narrow({softmax_score(units.even, found.even), softmax_score(units.odd, found.odd)});
        break;
      }
      case HeadKind::sparsemax:
        score = narrow(sparsemax_score(sparsemax_units(sparsemax_mantissa(a) & valid), found));
        break;
      default: score = pointwise_score(logit, head) & valid;
    }
    add_to_histogram(score, rows, job.bin_counts + c * kBins, job.bin_sums + c * kBins);
  }
}

// Returns what add_bins needs: the softmax factor or the sparsemax threshold.
Pair add_tile(const AccumulateJob& job, const Scratch& s, int64_t t, const HeadParameters& head, bool ranked, Sums& into) {
  const Tile<false> all = {s.logits + t * s.stride, nullptr, job.classes, s.maximum[t], s.valid[t]};
  const Leaders& leaders = s.leaders[t];
  const Tile<true> leading = {leaders.logits, leaders.classes, leaders.count, all.maximum, all.valid};
  // Few classes are added to faster in all rows at once than each by itself.
  const bool sparse = ranked && job.classes > kLeaders;
  switch (kind_of(head)) {
    case HeadKind::softmax:
      if (sparse && !any(not_negligible(all, leaders.cutoff, head.scale))) return add_softmax(s, leading, head.scale, into);
      start_lanes(into);
      return add_softmax(s, all, head.scale, into);
    case HeadKind::sparsemax: {
      Support found;
      const bool enough = ranked && find_support(leading, leaders.cutoff, head.scale, found);
      if (sparse && enough) return add_sparsemax(leading, found.active, nullptr, head.scale, found, into);
      start_lanes(into);
      if (enough) return add_sparsemax(all, all.count, nullptr, head.scale, found, into);
      find_support(s, all, head.scale, found);
      return add_sparsemax(all, found.active, s.active, head.scale, found, into);
    }
    default:
      start_lanes(into);
      add_pointwise(all, head, into);
      return Pair{};
  }
}

void add_head(const AccumulateJob& job, const Scratch& s, int64_t slot, int64_t rows, int64_t h, bool ranked) {
  const int64_t first = (slot * job.heads + h) * job.classes;
  Sums into = {s.sums, s.squares, job.sums + first, job.squares + first, job.classes, false};
  for (int64_t t = 0; t * kLanes < rows; ++t) {
    const Pair found = add_tile(job, s, t, job.parameters[h], ranked, into);
    if (job.tracked_classes > 0) add_bins(job, s, slot, h, t, rows - t * kLanes, found);
  }
  add_lanes(into);
}

}  // namespace

size_t RSFAST_NAME(accumulate_scratch_)(const AccumulateJob& job) {
  char* at = nullptr;
  lay_out(job, at);
  return reinterpret_cast<size_t>(at) + 64;
}

void RSFAST_NAME(accumulate_)(const AccumulateJob& job, const AccumulateShare& share, char* scratch) {
  const Scratch s = lay_out(job, scratch);
  const auto slot_of = [&](int64_t i) { return job.slots[share.order ? share.order[i] : i]; };
  const bool alone = share.begin == 0 && share.end == job.batch;
  const bool ranked = job.heads >= kHeadsWorthRanks * share.step;
  int64_t end = share.begin;
  for (int64_t begin = end; begin < share.end; begin = end) {
    const int64_t slot = slot_of(begin), full = begin + tiles_of(job) * kLanes;
    end = full < share.end ? full : share.end;
    if (slot_of(end - 1) != slot)  // slots ascend
      for (end = begin + 1; slot_of(end) == slot;) ++end;
    read_chunk(job, share.order, begin, end - begin, s);
    for (int64_t t = 0; ranked && t * kLanes < end - begin; ++t) find_leaders(job, s, t);
    for (int64_t item = share.first; item <= job.heads; item += share.step) {
      if (item > 0)
        add_head(job, s, slot, end - begin, item - 1, ranked);
      else if (alone)
        job.n[slot] += end - begin, count_votes(job, s, end - begin, job.counts + slot * (job.classes + 1));
      else
        count_shared_votes(job, s, slot, end - begin);
    }
  }
}

}  // namespace rsfast
