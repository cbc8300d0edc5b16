#include "cpu/codes.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "cpu/tasks.h"

namespace lrfast::cpu {
namespace {

template <StateKind kind>
LRFAST_HD void decode_all(const uint8_t* codes, uint32_t scale, float* __restrict to) {
  for (int64_t i = 0; i < kCodeBlock; ++i) to[i] = decode<kind>(codes[i], scale);
}

// Returns the scale. noise: [kCodeBlock].
template <StateKind kind>
LRFAST_HD uint8_t encode_all(const float* from, const uint16_t* noise, uint8_t* __restrict codes) {
  int32_t largest = 0;  // signed: SSE2 compares no other integers
  for (int64_t i = 0; i < kCodeBlock; ++i) {
    const int32_t magnitude = static_cast<int32_t>(finite_magnitude(from[i]));
    largest = magnitude > largest ? magnitude : largest;
  }
  const uint32_t scale = scale_of<kind>(static_cast<uint32_t>(largest));
  for (int64_t i = 0; i < kCodeBlock; ++i) {
    codes[i] = static_cast<uint8_t>(encode<kind>(from[i], scale, noise[i]));
  }
  return static_cast<uint8_t>(scale);
}

// The same for a block that may be cut off: zeros stand for what is not there.
LRFAST_CLONES void decode_part(StateKind kind, const uint8_t* codes, uint8_t scale, int64_t count,
                               float* to) {
  uint8_t whole[kCodeBlock];
  if (count < kCodeBlock) {
    std::memcpy(whole, codes, count);
    std::memset(whole + count, 0, kCodeBlock - count);
    codes = whole;
  }
  if (kind == StateKind::kPositive) {
    decode_all<StateKind::kPositive>(codes, scale, to);
  } else {
    decode_all<StateKind::kSigned>(codes, scale, to);
  }
}

LRFAST_CLONES uint8_t encode_part(StateKind kind, const float* from, const uint16_t* noise,
                                  int64_t count, uint8_t* codes) {
  float whole[kCodeBlock];
  uint8_t all[kCodeBlock];
  if (count < kCodeBlock) {
    std::memcpy(whole, from, count * sizeof(float));
    std::fill(whole + count, whole + kCodeBlock, 0.0f);
    from = whole;
  }
  uint8_t* to = count < kCodeBlock ? all : codes;
  const uint8_t scale = kind == StateKind::kPositive
                            ? encode_all<StateKind::kPositive>(from, noise, to)
                            : encode_all<StateKind::kSigned>(from, noise, to);
  if (count < kCodeBlock) std::memcpy(codes, all, count);
  return scale;
}

// What the values of a block's pairs have in common, and then a value's 16 bits for each element.
LRFAST_CLONES void fill_pairs(const Noise& noise, int64_t first, uint32_t* pairs) {
  const uint32_t begin = static_cast<uint32_t>(first >> 1);
  for (uint32_t i = 0; i < kCodeBlock / 2; ++i) pairs[i] = noise.of_pair(begin + i);
}

// A pair's noise lies in memory as its elements take it: low half first.
LRFAST_CLONES void fill_noise(const uint32_t* pairs, int which, uint16_t* noise) {
  static_assert(std::endian::native == std::endian::little);
  uint32_t values[kCodeBlock / 2];
  for (int64_t i = 0; i < kCodeBlock / 2; ++i) values[i] = Noise::of_value(pairs[i], which);
  std::memcpy(noise, values, sizeof(values));
}

}  // namespace

void decode_block(const StateNames& states, const TensorRow& row, int64_t begin, int64_t end,
                  WideBlock* wide) {
  for (int k = 0; k < states.count; ++k) {
    const uint8_t* codes = static_cast<const uint8_t*>(row.states[k]) + begin;
    decode_part(states.kinds[k], codes, row.scales[k][begin / kCodeBlock], end - begin, wide[k]);
  }
}

void encode_block(const StateNames& states, const TensorRow& row, int64_t begin, int64_t end,
                  const WideBlock* wide, const Noise& noise) {
  uint32_t pairs[kCodeBlock / 2];
  uint16_t bits[kCodeBlock];
  fill_pairs(noise, begin, pairs);
  for (int k = 0; k < states.count; ++k) {
    uint8_t* codes = static_cast<uint8_t*>(row.states[k]) + begin;
    fill_noise(pairs, k + 1, bits);
    row.scales[k][begin / kCodeBlock] =
        encode_part(states.kinds[k], wide[k], bits, end - begin, codes);
  }
}

void decode_state(StateKind kind, const uint8_t* codes, const uint8_t* scales, int64_t numel,
                  float* values) {
  WideBlock wide;
  for (int64_t begin = 0; begin < numel; begin += kCodeBlock) {
    const int64_t count = std::min(kCodeBlock, numel - begin);
    decode_part(kind, codes + begin, scales[begin / kCodeBlock], count, wide);
    std::memcpy(values + begin, wide, count * sizeof(float));
  }
}

void encode_state(StateKind kind, const float* values, int64_t numel, uint8_t* codes,
                  uint8_t* scales) {
  uint16_t nearest[kCodeBlock];
  std::fill(std::begin(nearest), std::end(nearest), static_cast<uint16_t>(kNearest));
  for (int64_t begin = 0; begin < numel; begin += kCodeBlock) {
    const int64_t count = std::min(kCodeBlock, numel - begin);
    scales[begin / kCodeBlock] = encode_part(kind, values + begin, nearest, count, codes + begin);
  }
}

}  // namespace lrfast::cpu
