// The CUDA kernels on the host: block after block, and within a block, between two barriers, thread after thread.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../csrc/cuda/accumulate.h"
#include "../csrc/cuda/perturb.h"

using namespace rsfast;

namespace {

// Runs kernel(block) on x by y blocks, with shared memory that starts as NaN. Returns what went wrong, or null.
template <class Kernel>
const char* run(int64_t x, int64_t y, int threads, size_t shared, bool backwards, const Kernel& kernel) {
  static char message[256];
  std::vector<Sixteen> memory(shared / sizeof(Sixteen) + 2);
  char* begin = reinterpret_cast<char*>(memory.data());
  try {
    for (int64_t i = 0; i < x * y; ++i) {
      const int64_t at = backwards ? x * y - 1 - i : i;
      std::fill(begin, begin + memory.size() * sizeof(Sixteen), '\xFF');
      kernel(Block{at % x, at / x, threads, begin, backwards});
      if (std::count(begin + shared, begin + shared + 16, '\xFF') != 16) return "wrote past the end of shared memory";
    }
  } catch (const std::out_of_range& error) {
    std::strncpy(message, error.what(), sizeof message - 1);
    return message;
  }
  return nullptr;
}

}  // namespace

// From piece `first` of each row on.
extern "C" const char* run_perturb(const PerturbJob* job, int backwards, int64_t first) {
  const PerturbGrid g = make_grid(*job);
  return run(g.pieces - first, job->batch, g.threads, g.shared, backwards, [&](Block block) {
    block.x += first;
    with_kernel(g, [&](auto kernel) { kernel.run(block, g); });
  });
}

extern "C" const char* run_accumulate(const AccumulateJob* job, int multiprocessors, int64_t most_shared, int backwards) {
  const AccumulateGrid g = make_grid(*job, multiprocessors, most_shared);
  return run(g.tiles, g.head_groups, g.threads, g.shared, backwards, [&](const Block& block) {
    switch (job->type) {
      case Type::float16: return accumulate_tile<Float16>(block, g);
      case Type::bfloat16: return accumulate_tile<BFloat16>(block, g);
      case Type::float64: return accumulate_tile<double>(block, g);
      default: return accumulate_tile<float>(block, g);
    }
  });
}

// Of perturb: pieces, threads, shared, aligned, layout, options, tile_positions, position_tiles, channel_tiles.
extern "C" void perturb_grid(const PerturbJob* job, int64_t* out) {
  const PerturbGrid g = make_grid(*job);
  const int64_t values[] = {g.pieces,
                            g.threads,
                            static_cast<int64_t>(g.shared),
                            g.aligned,
                            static_cast<int64_t>(g.layout),
                            static_cast<int64_t>(g.options),
                            g.tile_positions,
                            g.position_tiles,
                            g.channel_tiles};
  std::copy(std::begin(values), std::end(values), out);
}

// Of the words first, first + step, ... below last: those of whose uniform numbers `reduce` makes other bits than the steps
// of the definition, one by one, do.
extern "C" int64_t different_logarithms(int64_t first, int64_t last, int64_t step) {
  constexpr float kStep = -0x1.62e43p+0f;
  int64_t different = 0;
  const auto compare = [&](Uniform<float, bool> u, float value) {
    const uint32_t bits = as_bits(value) - 0x3F400000u;
    const int exponent = static_cast<int>((bits + 0x70000000u) >> 23) - 224;
    const float mantissa = as_float((bits & 0x007FFFFFu) + 0x3F400000u);
    float f, e;
    reduce(u, kStep, f, e);
    different += as_bits(u.value) != as_bits(value) || as_bits(f) != as_bits(u.near_one ? -value : mantissa - 1.0f) ||
                 e != (u.near_one ? 0.0f : static_cast<float>(exponent) * kStep);
  };
  for (int64_t at = first; at < last; at += step) {
    const uint32_t word = static_cast<uint32_t>(at), doubled = word << 1;
    const auto u = centred_uniform<float>(word), v = centred_uniform_31<float>(word);
    compare(u, (static_cast<float>(u.near_one ? ~word : word) + 0.5f) * 0x1p-32f);
    compare(v, static_cast<float>((v.near_one ? ~doubled : doubled) | 1u) * 0x1p-32f);
  }
  return different;
}

// Of the floats in [1, 4), every step-th: those for which some approximate reciprocal root within 2^-22.9 gives another root
// than the correctly rounded one. Returns how many, and writes the first 8 to `wrong`.
extern "C" int64_t wrong_roots(uint32_t step, float* wrong) {
  int64_t found = 0;
  for (uint32_t bits = as_bits(1.0f); bits < as_bits(4.0f); bits += step) {
    const float value = as_float(bits), root = std::sqrt(value);
    const double exact = 1.0 / std::sqrt(static_cast<double>(value)), error = 0x1.126p-23 * exact;  // above 2^-22.9
    bool right = true;
    for (uint32_t r = as_bits(static_cast<float>(exact - error)) - 1; as_float(r) <= exact + error; ++r)
      if (as_float(r) >= exact - error) right &= corrected_root(value, as_float(r)) == root;
    if (!right && found++ < 8) wrong[found - 1] = value;
  }
  return found;
}

extern "C" int bins() { return kBins; }

extern "C" int32_t bin_of(int32_t score) { return score_bin(score); }

extern "C" uint64_t divided(uint64_t n, int64_t by) { return quotient(n, make_divider(by)); }
