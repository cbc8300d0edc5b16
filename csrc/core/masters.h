// Master weights: a bfloat16 parameter is the upper half of a float32 weight, and what it lacks is
// kept beside it, in 8 or 16 bits for each element. The parameter is the weight rounded to the
// nearest bfloat16, so that the rest has a sign. With 16 bits the weight is any float32, with 8
// bits one whose last 8 digits are zeros: it is rounded to those when it is stored, ties to even.
// The rest counts in units of the magnitude, so that a parameter that something else negates, or
// multiplies by a power of two, takes it along; one that something else sets is off by half a unit
// in the last place of a bfloat16 at most.
//
// Kalamkar et al., "Optimizing Deep Learning Recommender Systems' Training On CPU Cluster
// Architectures", arXiv:2005.04680, halve a float32 so.
#pragma once

#include "core/dtypes.h"
#include "core/platform.h"

namespace lrfast {

// A parameter beside which its rest is kept, as a type for the drivers' templates.
struct MasterBFloat16 {
  uint16_t bits;
};

LRFAST_HD float to_compute(MasterBFloat16 x) { return to_compute(BFloat16{x.bits}); }

// Digits of a weight below those that it keeps.
template <class Rest>
constexpr int kMasterCut = 16 - 8 * static_cast<int>(sizeof(Rest));

template <class Rest>
LRFAST_HD float join_master(uint16_t half, Rest rest) {
  constexpr int32_t kUnit = 1 << kMasterCut<Rest>;
  const int32_t upper = static_cast<int32_t>(half & 0x7fffu) << 16;
  const int32_t magnitude = upper + rest * kUnit;
  // Below zero is what something else has set to zero, with a rest that was another weight's.
  const int32_t kept = magnitude > 0 ? magnitude : 0;
  return bits_as<float>(static_cast<uint32_t>(kept) | (half & 0x8000u) << 16);
}

// The weight that is kept of a float.
template <class Rest>
LRFAST_HD float round_master(float x) {
  constexpr int kCut = kMasterCut<Rest>;
  const uint32_t bits = bits_as<uint32_t>(x);
  uint32_t kept = bits;
  if constexpr (kCut > 0) {  // a carry out of the digits goes into the exponent, up to infinity
    kept = (bits + ((1u << (kCut - 1)) - 1u) + (bits >> kCut & 1u)) & ~((1u << kCut) - 1u);
  }
  return bits_as<float>(x != x ? (bits & 0x80000000u) | 0x7fc00000u : kept);
}

// x becomes what is kept of it.
template <class Rest>
LRFAST_HD void split_master(float& x, uint16_t& half, Rest& rest) {
  x = round_master<Rest>(x);
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t upper = (bits + 0x8000u) >> 16;
  half = static_cast<uint16_t>(upper);
  rest = static_cast<Rest>(static_cast<int32_t>(bits - (upper << 16)) >> kMasterCut<Rest>);
}

}  // namespace lrfast
