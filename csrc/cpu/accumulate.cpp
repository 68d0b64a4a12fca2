// accumulate on the CPU: accumulate.h with one row of logits a lane. Rows are taken kLanes at a time (a tile), laid out
// class by class, so that everything a row sums is summed down a lane and nothing crosses lanes until the Tally.
#include "../accumulate.h"

#include <utility>

#include "kernels.h"

namespace rsfast {
namespace {

constexpr int kHalf = kLanes / 2;

struct Pair {  // kLanes 64-bit lanes
  Wides low, high;
};

RSFAST_FN Pair widen(Ints v) {
  typedef int32_t HalfInts __attribute__((vector_size(kHalf * 4)));
  HalfInts halves[2];
  __builtin_memcpy(halves, &v, sizeof v);
  return {__builtin_convertvector(halves[0], Wides), __builtin_convertvector(halves[1], Wides)};
}

RSFAST_FN Ints narrow(const Pair& v) {
  typedef int32_t HalfInts __attribute__((vector_size(kHalf * 4)));
  const HalfInts halves[2] = {__builtin_convertvector(v.low, HalfInts), __builtin_convertvector(v.high, HalfInts)};
  return load<Ints>(halves);
}

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

RSFAST_FN uint64_t sum(Wides v) {
  uint64_t total = 0;
  for (int i = 0; i < kHalf; ++i) total += v[i];
  return total;
}

// The working memory of one thread. A chunk is up to `tiles` tiles of one slot.
struct Scratch {
  int64_t stride;        // of a tile of logits: the classes, or kLanes if they are fewer
  Floats* logits;        // [tiles, stride]
  Floats* maximum;       // [tiles]
  Ints* valid;           // [tiles]: all ones where the lane holds a row that votes
  Ints* votes;           // [tiles]: classes, of a row that is not valid the number of classes
  int64_t* counts;       // [classes + 1]: votes for a slot whose rows threads share
  Pair* units;           // [classes]: of the classes in `active`
  int32_t* active;       // [classes]
  Pair *sums, *squares;  // [classes]: of one head over the chunk
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
  s.counts = take<int64_t>(at, k + 1);
  s.units = take<Pair>(at, k);
  s.active = take<int32_t>(at, k);
  s.sums = take<Pair>(at, k);
  s.squares = take<Pair>(at, k);
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
  for (int64_t k = 0; k < job.classes; ++k) {
    top = logits[k] > top ? logits[k] : top;
    valid &= logits[k] == logits[k];  // false of NaN
  }
  valid &= is_finite(top);
  const Ints none = Ints{} + static_cast<int32_t>(job.classes);
  Ints vote = none;
  for (int64_t k = job.classes - 1; k >= 0; --k) vote = logits[k] == top ? Ints{} + static_cast<int32_t>(k) : vote;
  s.maximum[t] = top, s.valid[t] = valid, s.votes[t] = valid ? vote : none;
}

template <class T>
void read_chunk(const AccumulateJob& job, const int64_t* order, int64_t begin, int64_t rows, const Scratch& s) {
  const auto count = [&](int64_t t) { return static_cast<int>(rows - t * kLanes < kLanes ? rows - t * kLanes : kLanes); };
  for (int64_t t = 0; t * kLanes < rows; ++t)
    read_tile<T>(job, order, begin + t * kLanes, count(t), s.logits + t * s.stride);
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

RSFAST_FN void add(const Scratch& s, int64_t k, const Pair& score) {
  s.sums[k].low += score.low;
  s.sums[k].high += score.high;
  s.squares[k].low += square_score(score.low);
  s.squares[k].high += square_score(score.high);
}

RSFAST_FN Pair softmax_units(Floats a, Ints counts) {
  Ints mantissa, shift;
  exp_parts(a, mantissa, shift);
  const Pair m = widen(mantissa & counts), n = widen(shift & counts);
  return {exp_units(m.low, n.low), exp_units(m.high, n.high)};
}

Pair add_softmax(const AccumulateJob& job, const Scratch& s, int64_t t, float scale) {
  const Floats* logits = s.logits + t * s.stride;
  const Floats maximum = s.maximum[t];
  const Ints valid = s.valid[t];
  const Pair valid_rows = widen(valid);
  Pair total{};
  int64_t active = 0;
  for (int64_t k = 0; k < job.classes; ++k) {
    const Floats a = (logits[k] - maximum) * scale;
    const Ints counts = (a >= kNegligible) & valid;
    if (!any(counts)) continue;
    const Pair units = softmax_units(a, counts);
    total.low += units.low;
    total.high += units.high;
    s.units[active] = units;
    s.active[active++] = static_cast<int32_t>(k);
  }
  total.low |= ~valid_rows.low & kOne, total.high |= ~valid_rows.high & kOne;  // something to divide by; units are 0 there
  const Pair factor = {softmax_factor(total.low), softmax_factor(total.high)};
  for (int64_t i = 0; i < active; ++i)
    add(s, s.active[i], {softmax_score(s.units[i].low, factor.low), softmax_score(s.units[i].high, factor.high)});
  return factor;
}

RSFAST_FN Pair sparsemax_units(Ints mantissa) {
  const Pair m = widen(mantissa);
  return {m.low << 16, m.high << 16};
}

RSFAST_FN Wides above(Wides units, Wides threshold) { return reinterpret_cast<Wides>(units > threshold); }

RSFAST_FN Pair sparsemax_score(const Pair& units, const Pair& threshold) {
  return {((units.low - threshold.low) & above(units.low, threshold.low)) >> 10,
          ((units.high - threshold.high) & above(units.high, threshold.high)) >> 10};
}

Pair add_sparsemax(const AccumulateJob& job, const Scratch& s, int64_t t, float scale) {
  const Floats* logits = s.logits + t * s.stride;
  const Floats maximum = s.maximum[t];
  const Ints valid = s.valid[t];
  Pair total{}, count{};
  int64_t active = 0;
  for (int64_t k = 0; k < job.classes; ++k) {
    const Ints mantissa = sparsemax_mantissa((logits[k] - maximum) * scale) & valid;
    if (!any(mantissa > 0)) continue;
    const Pair units = sparsemax_units(mantissa);
    total.low += units.low, total.high += units.high;
    count.low -= reinterpret_cast<Wides>(units.low > 0), count.high -= reinterpret_cast<Wides>(units.high > 0);
    s.units[active] = units;
    s.active[active++] = static_cast<int32_t>(k);
  }
  // Rows that are not valid get one class of 1, so that there is something to divide by; their units are 0 all the same.
  const Pair valid_rows = widen(valid);
  const Pair spare = {~valid_rows.low & 1, ~valid_rows.high & 1};
  total.low += spare.low * kOne, total.high += spare.high * kOne;
  count.low += spare.low, count.high += spare.high;
  for (bool dropped = true; dropped;) {
    const Pair threshold = {sparsemax_floor(total.low, count.low), sparsemax_floor(total.high, count.high)}, before = count;
    total = {spare.low * kOne, spare.high * kOne}, count = spare;
    for (int64_t i = 0; i < active; ++i) {
      const Pair& units = s.units[i];
      const Wides low = above(units.low, threshold.low), high = above(units.high, threshold.high);
      total.low += units.low & low, total.high += units.high & high;
      count.low -= low, count.high -= high;
    }
    dropped = any((before.low ^ count.low) | (before.high ^ count.high));
  }
  const Pair threshold = {sparsemax_ceiling(total.low, count.low), sparsemax_ceiling(total.high, count.high)};
  for (int64_t i = 0; i < active; ++i) add(s, s.active[i], sparsemax_score(s.units[i], threshold));
  return threshold;
}

void add_pointwise(const AccumulateJob& job, const Scratch& s, int64_t t, const HeadParameters& head) {
  const Floats* logits = s.logits + t * s.stride;
  for (int64_t k = 0; k < job.classes; ++k) add(s, k, widen(pointwise_score(logits[k], head) & s.valid[t]));
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
        score = narrow({softmax_score(units.low, found.low), softmax_score(units.high, found.high)});
        break;
      }
      case HeadKind::sparsemax:
        score = narrow(sparsemax_score(sparsemax_units(sparsemax_mantissa(a) & valid), found));
        break;
      default: score = pointwise_score(logit, head) & valid;
    }
    const Ints bin = score_bin(score);
    for (int lane = 0; lane < kLanes && lane < rows; ++lane) {
      const int64_t place = c * kBins + bin[lane];
      ++job.bin_counts[place];
      job.bin_sums[place] += score[lane];
    }
  }
}

void add_head(const AccumulateJob& job, const Scratch& s, int64_t slot, int64_t rows, int64_t h) {
  const HeadParameters& head = job.parameters[h];
  for (int64_t k = 0; k < job.classes; ++k) s.sums[k] = s.squares[k] = Pair{};
  for (int64_t t = 0; t * kLanes < rows; ++t) {
    Pair found{};
    switch (kind_of(head)) {
      case HeadKind::softmax: found = add_softmax(job, s, t, head.scale); break;
      case HeadKind::sparsemax: found = add_sparsemax(job, s, t, head.scale); break;
      default: add_pointwise(job, s, t, head);
    }
    if (job.tracked_classes > 0) add_bins(job, s, slot, h, t, rows - t * kLanes, found);
  }
  int64_t* sums = job.sums + (slot * job.heads + h) * job.classes;
  int64_t* squares = job.squares + (slot * job.heads + h) * job.classes;
  for (int64_t k = 0; k < job.classes; ++k) {
    sums[k] += static_cast<int64_t>(sum(s.sums[k].low + s.sums[k].high));
    squares[k] += static_cast<int64_t>(sum(s.squares[k].low + s.squares[k].high));
  }
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
  int64_t end = share.begin;
  for (int64_t begin = end; begin < share.end; begin = end) {
    const int64_t slot = slot_of(begin), full = begin + tiles_of(job) * kLanes;
    end = full < share.end ? full : share.end;
    if (slot_of(end - 1) != slot)  // slots ascend
      for (end = begin + 1; slot_of(end) == slot;) ++end;
    read_chunk(job, share.order, begin, end - begin, s);
    for (int64_t item = share.first; item <= job.heads; item += share.step) {
      if (item > 0)
        add_head(job, s, slot, end - begin, item - 1);
      else if (alone)
        job.n[slot] += end - begin, count_votes(job, s, end - begin, job.counts + slot * (job.classes + 1));
      else
        count_shared_votes(job, s, slot, end - begin);
    }
  }
}

}  // namespace rsfast
