// Random bits for stochastic rounding: a hash of where and when they are used, with no state. A
// replayed CUDA graph gets new bits at each step, because the step count stands in device memory; a
// resumed run, and any number of threads, get the same ones.
#pragma once

#include <cstdint>

#include "core/platform.h"
#include "core/tables.h"

namespace lrfast {

// Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", 2014: splitmix64.
LRFAST_HD uint64_t mix(uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// The noise of one tensor at one step.
struct Noise {
  uint32_t key;

  LRFAST_HD static Noise at(uint64_t seed, uint32_t tensor, int64_t step) {
    return {static_cast<uint32_t>(mix(mix(seed + tensor) + static_cast<uint64_t>(step)))};
  }

  // What the values of elements 2 * pair and 2 * pair + 1 have in common: the 32-bit finalizer of
  // MurmurHash3 (Appleby, public domain), which vectorises, but for its last shift.
  LRFAST_HD uint32_t of_pair(uint32_t pair) const {
    uint32_t x = pair ^ key;
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x;
  }

  // 32 bits for their value number which (0 for the parameter, then its states); the low half is
  // the first element's. A hash for each value would be a tenth of AdamW's instructions on a GPU,
  // so they are successive numbers of a linear congruential generator, whose lattice is the best of
  // its size (L'Ecuyer, "Tables of linear congruential generators of different sizes and good
  // lattice structure", Math. Comp. 68, 1999), behind that last shift.
  LRFAST_HD static uint32_t of_value(uint32_t common, int which) {
    constexpr uint32_t kNext = 2891336453u;
    static_assert(kMaxStates == 4);
    const uint32_t factor = which == 0   ? 1u
                            : which == 1 ? kNext
                            : which == 2 ? kNext * kNext
                            : which == 3 ? kNext * kNext * kNext
                                         : kNext * kNext * kNext * kNext;
    const uint32_t x = common * factor;
    return x ^ (x >> 16);
  }

  // An element's 16 bits.
  LRFAST_HD uint32_t operator()(int64_t element, int which) const {
    const uint32_t both = of_value(of_pair(static_cast<uint32_t>(element >> 1)), which);
    return (element & 1) != 0 ? both >> 16 : both & 0xffffu;
  }
};

}  // namespace lrfast
