// States in 8 bits: a code for each element and a scale, a power of two, for each block of them, as
// OCP's microscaling formats have it. A mean of gradients is a float of a sign, 4 bits of exponent
// and 3 of mantissa; a mean of squares has no sign and 5 bits of exponent. Values are rounded up or
// down at random: to nearest, a mean of squares stands still under beta2 = 0.999, whose steps are
// a hundredth of what lies between two codes. No positive square becomes zero, for a step is
// divided by its root: what lies below the range of its block is raised to the smallest code.
//
// Rouhani et al., "Microscaling Data Formats for Deep Learning", arXiv:2310.10537.
// Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861.
#pragma once

#include "core/dtypes.h"
#include "core/platform.h"

namespace lrfast {

// Elements that share a scale: neighbours in memory, of one tensor. The scales are 0.4 % of the
// codes, and a warp of a GPU holds a block, 8 elements a lane.
constexpr int64_t kCodeBlock = 256;
// Fewer elements than this keep float32: such tensors (norms, biases) are 0.2 % of a ViT-S in
// memory, and the blocks of a small one mix what trains differently.
constexpr int64_t kMinCoded = 4096;

// What a state holds, which decides how it may be coded.
enum class StateKind : uint8_t {
  kWide,      // must not be coded
  kSigned,    // a mean of gradients or of steps
  kPositive,  // a mean of squares
};

constexpr uint32_t kInfinityBits = 0x7f800000u;
// Digits of a float below those of a code, and what rounds to nearest in their place.
constexpr int kCutDigits = 20;
constexpr uint32_t kNearest = 0x8000u;  // of the 16 bits of a noise

constexpr int64_t count_scales(int64_t numel) { return (numel + kCodeBlock - 1) / kCodeBlock; }

LRFAST_HD uint32_t magnitude_of(float x) { return bits_as<uint32_t>(x) & 0x7fffffffu; }

// What counts for a block's scale; infinity and NaN have a code of their own at any scale.
LRFAST_HD uint32_t finite_magnitude(float x) {
  const uint32_t magnitude = magnitude_of(x);
  return magnitude < kInfinityBits ? magnitude : 0u;
}

// The exponent, as a float has it, of a block's smallest numbers. The largest magnitude stays below
// the last code, which is not a number's, also when it is rounded up: held down there, a mean whose
// steps are smaller than what lies between two codes could never grow.
template <StateKind kind>
LRFAST_HD uint32_t scale_of(uint32_t largest) {
  constexpr bool is_positive = kind == StateKind::kPositive;
  // From the scale to the exponent of the last codes.
  constexpr uint32_t kExponents = is_positive ? 31 : 16;
  // What the shift of a signed number, 2^15 times smaller than those, adds to the largest one.
  constexpr uint32_t kShift = is_positive ? 0u : 1u << (23 - 15);
  const uint32_t top = (largest + (2u << kCutDigits) - 1u + kShift) >> 23;
  const uint32_t highest = top < 254u ? top : 254u;  // of finite floats
  return highest > kExponents ? highest - kExponents : 0u;
}

// The float that signed numbers are shifted by, away from zero, before they are cut: the codes near
// zero are then as far from each other as those behind them, and no case needs a branch.
LRFAST_HD uint32_t shift_bits(uint32_t scale) { return (scale + 1u) << 23; }

// The code of infinity, which stands for NaN too where numbers have signs.
template <StateKind kind>
constexpr uint32_t kLastCode = kind == StateKind::kPositive ? 255u : 127u;

template <StateKind kind>
LRFAST_HD float decode(uint32_t code, uint32_t scale) {
  if constexpr (kind == StateKind::kPositive) {
    const uint32_t bits = (code << kCutDigits) + (scale << 23);
    const uint32_t number = code == 0u ? 0u : bits;
    return bits_as<float>(code == kLastCode<kind> ? uint32_t{kInfinityBits} : number);
  } else {
    const uint32_t digits = (code & 0x7fu) << kCutDigits;
    const uint32_t shifted =
        digits == kLastCode<kind> << kCutDigits ? 0x7fc00000u : digits + shift_bits(scale);
    const float magnitude = bits_as<float>(shifted) - bits_as<float>(shift_bits(scale));
    return bits_as<float>(bits_as<uint32_t>(magnitude) | (code & 0x80u) << 24);
  }
}

// The magnitude of 2^127. Some of the numbers from there on are rounded to infinity.
constexpr uint32_t kBelowLast = 254u << 23;

// noise: 16 random bits. A number that a code stands for is not rounded. Infinity and NaN come out
// above the last code at every scale that there is, and become it. below_last: x is known not to,
// as with the scale of its block no number below kBelowLast does.
template <StateKind kind, bool below_last = false>
LRFAST_HD uint32_t encode(float x, uint32_t scale, uint32_t noise) {
  constexpr int32_t kHalf = 8;  // of the digits that no noise reaches
  constexpr int32_t kLast = kLastCode<kind>;
  const uint32_t magnitude = magnitude_of(x);
  if constexpr (kind == StateKind::kPositive) {
    const uint32_t number =
        below_last || magnitude < kInfinityBits ? magnitude : uint32_t{kInfinityBits};
    // Below the block's range the difference is negative.
    const int32_t offset = static_cast<int32_t>(scale << 23) - kHalf;
    const int32_t digits = static_cast<int32_t>(number) - offset;
    const int32_t rounded = (digits + static_cast<int32_t>(noise << 4)) >> kCutDigits;
    const int32_t least = static_cast<int32_t>((magnitude + 0x7fffffffu) >> 31);  // 0 for 0, else 1
    const int32_t raised = rounded > least ? rounded : least;
    return static_cast<uint32_t>(below_last || raised < kLast ? raised : kLast);
  } else {
    const uint32_t shift = shift_bits(scale);
    const float shifted = bits_as<float>(magnitude) + bits_as<float>(shift);
    const int32_t digits = bits_as<int32_t>(shifted) - (static_cast<int32_t>(shift) - kHalf);
    const int32_t rounded = (digits + static_cast<int32_t>(noise << 4)) >> kCutDigits;
    const int32_t code = below_last || rounded < kLast ? rounded : kLast;
    return static_cast<uint32_t>(code) | (bits_as<uint32_t>(x) >> 24 & 0x80u);
  }
}

}  // namespace lrfast
