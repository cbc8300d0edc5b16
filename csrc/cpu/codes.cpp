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

// Noise and codes are words here: a loop that mixes types takes 10 % more with AVX2.
template <StateKind kind, bool below_last>
LRFAST_HD void encode_at(const float* from, uint32_t scale, const uint32_t* noise,
                         uint8_t* __restrict codes) {
  uint32_t words[kCodeBlock];
  for (int64_t i = 0; i < kCodeBlock / 2; ++i) {
    words[2 * i] = noise[i] & 0xffffu;
    words[2 * i + 1] = noise[i] >> 16;
  }
  for (int64_t i = 0; i < kCodeBlock; ++i) {
    words[i] = encode<kind, below_last>(from[i], scale, words[i]);
  }
  for (int64_t i = 0; i < kCodeBlock; ++i) codes[i] = static_cast<uint8_t>(words[i]);
}

// magnitude: what counts of a float. Signed, because SSE2 compares no other integers.
template <uint32_t (*magnitude)(float)>
LRFAST_HD uint32_t largest_of(const float* from) {
  int32_t largest = 0;
  for (int64_t i = 0; i < kCodeBlock; ++i) {
    const int32_t one = static_cast<int32_t>(magnitude(from[i]));
    largest = one > largest ? one : largest;
  }
  return static_cast<uint32_t>(largest);
}

// Returns the scale. noise: [kCodeBlock / 2].
template <StateKind kind>
LRFAST_HD uint8_t encode_all(const float* from, const uint32_t* noise, uint8_t* __restrict codes) {
  const uint32_t largest = largest_of<magnitude_of>(from);
  if (largest < kBelowLast) {
    const uint32_t scale = scale_of<kind>(largest);
    encode_at<kind, true>(from, scale, noise, codes);
    return static_cast<uint8_t>(scale);
  }
  const uint32_t scale = scale_of<kind>(largest_of<finite_magnitude>(from));
  encode_at<kind, false>(from, scale, noise, codes);
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

LRFAST_CLONES uint8_t encode_block(StateKind kind, const float* from, const uint32_t* noise,
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
  uint32_t nearest[kCodeBlock / 2];
  std::fill(std::begin(nearest), std::end(nearest), kNearest << 16 | kNearest);
  for (int64_t begin = 0; begin < numel; begin += kCodeBlock) {
    const int64_t count = std::min(kCodeBlock, numel - begin);
    scales[begin / kCodeBlock] = encode_block(kind, values + begin, nearest, count, codes + begin);
  }
}

}  // namespace lrfast::cpu
