// Master weights: a half parameter is the upper part of a wider weight, and what it lacks is kept
// beside it, in 8 or 16 bits for each element. The parameter is the weight rounded to the nearest
// half, ties away from zero, so that the rest has a sign.
//
// The two together are one whole number, the code of the weight's magnitude: that of a half with 16
// more binary digits, of which the last 8 are zeros if 8 bits are kept. Of a bfloat16 it is any
// float32. Of a float16 it has 27 significant digits at most, so that it is any float32 from 2^-17
// up to where a float16 ends; digits below 2^-40 (of 8 bits, below 2^-32) are lost, and what is
// 65536 or more is infinite. When it is stored, a float becomes the nearest weight with 16 more
// digits, and for 8 bits then the nearest to that, ties to even.
//
// The rest counts in units of the magnitude, so that a parameter that something else negates, or
// multiplies by a power of two, takes it along; one that something else sets is off by half a unit
// in the last place of its half at most.
//
// Kalamkar et al., "Optimizing Deep Learning Recommender Systems' Training On CPU Cluster
// Architectures", arXiv:2005.04680, halve a float32 so.
#pragma once

#include "core/dtypes.h"
#include "core/platform.h"

namespace lrfast {

// Which weights are kept. Constants on the CPU; known where the step runs on a GPU, for which each
// kind would be another copy of every rule.
struct MasterKind {
  bool is_float16;
  bool is_short;  // 8 bits are kept instead of 16
};

// One of two, both of which are there. As a conditional expression it is a jump to the compiler of
// the CPU, which puts the floating-point arithmetic behind it, and then leaves the loop scalar.
LRFAST_HD uint32_t chosen(bool first, uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return first ? a : b;
#else
  const uint32_t mask = 0u - static_cast<uint32_t>(first);
  return (a & mask) | (b & ~mask);
#endif
}

// The code of a float16's infinity, and the exponents that float16 lacks.
constexpr uint32_t kFloat16Infinity = 0x7c00u << 16;
constexpr uint32_t kFloat16Bias = 112u << 23;

// The bits of the float that a float16's code stands for. Digits that a float lacks are cut off:
// rounded, they could make the parameter another one.
LRFAST_HD uint32_t decode_float16_master(uint32_t code) {
  const uint32_t normal = (code >> 3) + kFloat16Bias;
  const uint32_t digits = code & ~(code >> 24 | code >> 25);
  const float subnormal = static_cast<float>(static_cast<int32_t>(digits)) * 0x1p-40f;
  const uint32_t finite = chosen(code < 1u << 26, bits_as<uint32_t>(subnormal), normal);
  return finite + chosen(code >= kFloat16Infinity, kFloat16Bias, 0u);
}

// The code of a float's magnitude as a float16's weight.
LRFAST_HD uint32_t encode_float16_master(uint32_t magnitude) {
  constexpr float kWhole = 0x1p23f;  // from here on floats are whole numbers
  constexpr uint32_t kWholeBits = 150u << 23;
  constexpr uint32_t kMost = 153u << 23;  // 2^26, which an int can hold
  const uint32_t scaled = bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p40f);
  const uint32_t capped = chosen(scaled < kMost, scaled, kMost);
  const float whole = (bits_as<float>(capped) + kWhole) - kWhole;
  const uint32_t rounded = chosen(capped < kWholeBits, bits_as<uint32_t>(whole), capped);
  const uint32_t subnormal = static_cast<uint32_t>(static_cast<int32_t>(bits_as<float>(rounded)));
  const uint32_t normal = (magnitude - kFloat16Bias) << 3;
  const uint32_t finite = chosen(magnitude < 113u << 23, subnormal, normal);
  const uint32_t special = chosen(magnitude > 0x7f800000u, 0x7e00u << 16, kFloat16Infinity);
  return chosen(magnitude >= 143u << 23, special, finite);
}

// The code of the weight that is kept of a float, under the float's sign, and back as bits.
LRFAST_HD uint32_t encode_master(float x, MasterKind kind) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t sign = bits & 0x80000000u;
  const uint32_t code = kind.is_float16 ? encode_float16_master(bits & 0x7fffffffu) | sign
                                        : (x != x ? sign | 0x7fc00000u : bits);
  // A carry out of the digits goes into the exponent, up to infinity.
  return kind.is_short ? (code + 0x7fu + (code >> 8 & 1u)) & ~0xffu : code;
}
LRFAST_HD uint32_t decode_master(uint32_t code, MasterKind kind) {
  return kind.is_float16 ? decode_float16_master(code & 0x7fffffffu) | (code & 0x80000000u) : code;
}

// A rest counts in the last of 16 digits.
LRFAST_HD int32_t wide_rest(int8_t rest) { return rest * 256; }
LRFAST_HD int32_t wide_rest(int16_t rest) { return rest; }

LRFAST_HD float join_master(uint16_t half, int32_t rest, MasterKind kind) {
  const int32_t sum = (static_cast<int32_t>(half & 0x7fffu) << 16) + rest;
  // Below zero is what something else has set to zero, with a rest that was another weight's.
  const uint32_t magnitude = static_cast<uint32_t>(sum > 0 ? sum : 0);
  return bits_as<float>(decode_master(magnitude | (half & 0x8000u) << 16, kind));
}

// The weight that is kept of a float.
LRFAST_HD float round_master(float x, MasterKind kind) {
  return bits_as<float>(decode_master(encode_master(x, kind), kind));
}

// x becomes what is kept of it. Returns the rest.
LRFAST_HD int32_t split_master(float& x, uint16_t& half, MasterKind kind) {
  const uint32_t code = encode_master(x, kind);
  const uint32_t upper = (code + 0x8000u) >> 16;
  half = static_cast<uint16_t>(upper);
  x = bits_as<float>(decode_master(code, kind));
  return static_cast<int32_t>(code - (upper << 16));
}

// The same where it is kept.
LRFAST_HD void narrow_rest(int32_t rest, int8_t& to) { to = static_cast<int8_t>(rest >> 8); }
LRFAST_HD void narrow_rest(int32_t rest, int16_t& to) { to = static_cast<int16_t>(rest); }

}  // namespace lrfast
