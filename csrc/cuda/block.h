// A block of threads. Kernels are written against it, so that the same code runs as a CUDA block and, in the tests, as a
// loop over the threads on the host.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define RSFAST_MEMBER_FN __device__ __forceinline__
#else
#define RSFAST_MEMBER_FN inline
#endif
#define RSFAST_KERNEL_FN static RSFAST_MEMBER_FN

namespace rsfast {

using Counter = unsigned long long;  // as CUDA's atomics spell it

inline int64_t blocks_of(int64_t items, int64_t size) { return (items + size - 1) / size; }

#if defined(__CUDACC__)

struct Block {
  int64_t x, y;
  int threads;
  char* shared;

  // f(thread) on every thread; what they wrote to shared memory is then seen by all.
  template <class F>
  RSFAST_MEMBER_FN void each(const F& f) const {
    f(static_cast<int>(threadIdx.x));
    __syncthreads();
  }

  // f(thread) on every thread, for threads that share nothing.
  template <class F>
  RSFAST_MEMBER_FN void apart(const F& f) const {
    f(static_cast<int>(threadIdx.x));
  }

  // Whether f(thread) is true on any thread.
  template <class F>
  RSFAST_MEMBER_FN bool any(const F& f) const {
    return __syncthreads_or(f(static_cast<int>(threadIdx.x)));
  }
};

RSFAST_KERNEL_FN Block this_block() {
  extern __shared__ __align__(16) char shared[];
  return {blockIdx.x, blockIdx.z * int64_t{gridDim.y} + blockIdx.y, static_cast<int>(blockDim.x), shared};
}

// x blocks by y, where y may be more than a grid's 65,535: block.y may then be y and more in the last ones.
inline dim3 grid_of(int64_t x, int64_t y) {
  constexpr int64_t kMost = 65535;
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y < kMost ? y : kMost),
              static_cast<unsigned>(blocks_of(y, kMost)));
}

RSFAST_KERNEL_FN int64_t add_atomically(int64_t* to, int64_t value) {
  return static_cast<int64_t>(atomicAdd(reinterpret_cast<Counter*>(to), static_cast<Counter>(value)));
}

RSFAST_KERNEL_FN void or_atomically(int64_t* to, int64_t bits) {
  atomicOr(reinterpret_cast<Counter*>(to), static_cast<Counter>(bits));
}

#else

struct Block {
  int64_t x, y;
  int threads;
  char* shared;
  bool backwards;  // a race between two barriers shows as a difference between the two orders

  template <class F>
  void each(const F& f) const {
    for (int i = 0; i < threads; ++i) f(backwards ? threads - 1 - i : i);
  }

  template <class F>
  void apart(const F& f) const {
    each(f);
  }

  template <class F>
  bool any(const F& f) const {
    bool found = false;
    each([&](int thread) { found |= f(thread); });
    return found;
  }
};

RSFAST_KERNEL_FN int64_t add_atomically(int64_t* to, int64_t value) {
  const int64_t before = *to;
  *to += value;
  return before;
}

RSFAST_KERNEL_FN void or_atomically(int64_t* to, int64_t bits) { *to |= bits; }

#endif

}  // namespace rsfast
