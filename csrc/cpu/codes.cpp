#include "cpu/codes.h"

#include <algorithm>
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

}  // namespace

// Zeros stand for what is not there of a block that is cut off.
LRFAST_CLONES void decode_block(StateKind kind, const uint8_t* codes, uint8_t scale, int64_t count,
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

LRFAST_CLONES uint8_t encode_block(StateKind kind, const float* from, const uint16_t* noise,
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

void decode_state(StateKind kind, const uint8_t* codes, const uint8_t* scales, int64_t numel,
                  float* values) {
  float wide[kCodeBlock];
  for (int64_t begin = 0; begin < numel; begin += kCodeBlock) {
    const int64_t count = std::min(kCodeBlock, numel - begin);
    decode_block(kind, codes + begin, scales[begin / kCodeBlock], count, wide);
    std::memcpy(values + begin, wide, count * sizeof(float));
  }
}

void encode_state(StateKind kind, const float* values, int64_t numel, uint8_t* codes,
                  uint8_t* scales) {
  uint16_t nearest[kCodeBlock];
  std::fill(std::begin(nearest), std::end(nearest), static_cast<uint16_t>(kNearest));
  for (int64_t begin = 0; begin < numel; begin += kCodeBlock) {
    const int64_t count = std::min(kCodeBlock, numel - begin);
    scales[begin / kCodeBlock] = encode_block(kind, values + begin, nearest, count, codes + begin);
  }
}

}  // namespace lrfast::cpu
