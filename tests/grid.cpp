// The CUDA kernels on the host: block after block, and within a block, between two barriers, thread after thread.
#include <algorithm>
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

extern "C" int bins() { return kBins; }

extern "C" int32_t bin_of(int32_t score) { return score_bin(score); }

extern "C" uint64_t divided(uint64_t n, int64_t by) { return quotient(n, make_divider(by)); }
