// accumulate on the CPU: accumulate.h with one row of logits a lane. Rows are taken kLanes at a time (a tile), laid out
// class by class, so that everything a row sums is summed down a lane and nothing crosses lanes until the Tally.
#include "../accumulate.h"

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
  Floats* logits;        // [tiles, classes]
  Floats* maximum;       // [tiles]
  Ints* valid;           // [tiles]: all ones where the lane holds a row that votes
  Pair* units;           // [classes]: of the classes in `active`
  int32_t* active;       // [classes]
  Pair *sums, *squares;  // [classes]: of one head over the chunk
};

RSFAST_FN int64_t tiles_of(const AccumulateJob& job) {  // as many as leave the logits in L2
  const int64_t fit = (int64_t{256} << 10) / (job.classes * static_cast<int64_t>(sizeof(Floats)));
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
  s.logits = take<Floats>(at, tiles * k);
  s.maximum = take<Floats>(at, tiles);
  s.valid = take<Ints>(at, tiles);
  s.units = take<Pair>(at, k);
  s.active = take<int32_t>(at, k);
  s.sums = take<Pair>(at, k);
  s.squares = take<Pair>(at, k);
  return s;
}

template <class T>
void read_tile(const AccumulateJob& job, const int64_t* order, int count, Floats* logits, Floats& maximum, Ints& valid) {
  constexpr int64_t kBlock = 16;
  valid = Ints{};
  for (int64_t k0 = 0; k0 < job.classes; k0 += kBlock) {
    const int64_t k1 = k0 + kBlock < job.classes ? k0 + kBlock : job.classes;
    for (int lane = 0; lane < count; ++lane) {
      const T* row = static_cast<const T*>(job.logits) + order[lane] * job.row_stride;
      float* to = reinterpret_cast<float*>(logits) + lane;
      for (int64_t k = k0; k < k1; ++k) to[k * kLanes] = read_logit(row + k * job.class_stride);
    }
  }
  for (int lane = 0; lane < count; ++lane) valid[lane] = -1;
  Floats top = logits[0];
  for (int64_t k = 0; k < job.classes; ++k) {
    top = logits[k] > top ? logits[k] : top;
    valid &= logits[k] == logits[k];  // false of NaN
  }
  valid &= is_finite(top);
  maximum = top;
}

RSFAST_FN void read_chunk(const AccumulateJob& job, const int64_t* order, int64_t rows, const Scratch& s) {
  for (int64_t t = 0; t * kLanes < rows; ++t) {
    const int64_t left = rows - t * kLanes;
    const int count = static_cast<int>(left < kLanes ? left : kLanes);
    Floats* logits = s.logits + t * job.classes;
    const int64_t* at = order + t * kLanes;
    switch (job.type) {
      case Type::float16: read_tile<Float16>(job, at, count, logits, s.maximum[t], s.valid[t]); break;
      case Type::bfloat16: read_tile<BFloat16>(job, at, count, logits, s.maximum[t], s.valid[t]); break;
      case Type::float64: read_tile<double>(job, at, count, logits, s.maximum[t], s.valid[t]); break;
      default: read_tile<float>(job, at, count, logits, s.maximum[t], s.valid[t]);
    }
  }
}

void count_votes(const AccumulateJob& job, const Scratch& s, int64_t slot, int64_t rows) {
  int64_t* counts = job.counts + slot * (job.classes + 1);
  job.n[slot] += rows;
  for (int64_t t = 0; t * kLanes < rows; ++t) {
    const Floats* logits = s.logits + t * job.classes;
    Ints vote = Ints{} + static_cast<int32_t>(job.classes);
    for (int64_t k = job.classes - 1; k >= 0; --k)
      vote = logits[k] == s.maximum[t] ? Ints{} + static_cast<int32_t>(k) : vote;
    vote = s.valid[t] ? vote : Ints{} + static_cast<int32_t>(job.classes);
    const int64_t left = rows - t * kLanes;
    for (int lane = 0; lane < kLanes && lane < left; ++lane) ++counts[vote[lane]];
  }
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
  const Floats* logits = s.logits + t * job.classes;
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
  const Floats* logits = s.logits + t * job.classes;
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
  const Floats* logits = s.logits + t * job.classes;
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
    const Floats logit = s.logits[t * job.classes + job.tracked[c]], a = (logit - s.maximum[t]) * head.scale;
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

void RSFAST_NAME(accumulate_)(const AccumulateJob& job, const int64_t* order, int64_t first, int64_t step, char* scratch) {
  const Scratch s = lay_out(job, scratch);
  int64_t end = 0;
  for (int64_t begin = 0; begin < job.batch; begin = end) {
    const int64_t slot = job.slots[order[begin]], most = begin + tiles_of(job) * kLanes;
    while (end < job.batch && end < most && job.slots[order[end]] == slot) ++end;
    read_chunk(job, order + begin, end - begin, s);
    for (int64_t item = first; item <= job.heads; item += step) {
      if (item == 0)
        count_votes(job, s, slot, end - begin);
      else
        add_head(job, s, slot, end - begin, item - 1);
    }
  }
}

}  // namespace rsfast
