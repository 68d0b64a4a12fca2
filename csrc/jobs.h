// What a call of perturb or accumulate is told. Tensors are addresses, checked by rsfast/ops.
#pragma once

#include <stdint.h>

namespace rsfast {

enum class Type : int { float32, float16, bfloat16, float64 };

enum class Draw : int;  // noise.h

// What a noise adds, or does, to x. What a draw takes of it, rsfast/noise and noise.h say.
struct NoiseParameters {
  Draw draw;
  float scalars[5];       // of noise that is added, the first is the scale, by which standard noise is multiplied
  const float* each;      // [elements]: a value of each element (its bits, if an int32), or null
  const void* tables[2];  // of a draw that looks values up
};

struct PerturbJob {
  const float* x;            // [inputs, elements]
  const int64_t* rows;       // [batch]: the input of each output row
  const int64_t* input_ids;  // [inputs]
  const int64_t* samples;    // [batch]
  int64_t inputs, batch, elements, channels;
  NoiseParameters noise;
  uint64_t seed;
  int stream;
  const float* scale;  // null, and then shift is too, or [elements] on the CPU and [channels] on a GPU
  const float* shift;
  bool clamp;
  float clamp_low, clamp_high;
  void* out;  // [batch, elements], or [batch, elements / channels, channels] if channels_last
  Type type;
  bool channels_last;
};

struct HeadParameters {  // a row of Tally.parameters
  float kind;            // a HeadKind (accumulate.h)
  float scale;           // 1 / temperature, or 1 / (high - low)
  float low, high;
};

struct AccumulateJob {
  const void* logits;
  Type type;
  int64_t row_stride, class_stride;  // in elements
  int64_t batch, classes, heads, inputs;
  int64_t tracked_classes;  // of each input and head
  const int64_t* slots;     // [batch]: the input of each row
  const HeadParameters* parameters;
  int64_t *n, *counts, *sums, *squares;  // [inputs], [inputs, classes + 1], [inputs, heads, classes] twice
  const int64_t* tracked;                // [inputs, heads, tracked_classes]: the classes whose scores have a histogram
  int64_t *bin_counts, *bin_sums;        // [inputs, heads, tracked_classes, kBins]
};

}  // namespace rsfast
