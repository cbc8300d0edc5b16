// States in 8 bits: the codes alone, the scales of blocks, and what many steps make of both.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/noise.h"
#include "cpu/codes.h"

#include "check.h"

namespace lrfast::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kSmallest = std::numeric_limits<float>::denorm_min();
constexpr uint32_t kNoises[] = {0u, 1u, kNearest, 0xffffu};

template <StateKind kind>
constexpr uint32_t kLastScale = kind == StateKind::kPositive ? 223 : 238;
// Codes of numbers that are not negative.
template <StateKind kind>
constexpr uint32_t kCodes = kind == StateKind::kPositive ? 256 : 128;

// Every code comes back as itself from the number that it stands for, whatever the noise; the
// numbers grow with their codes, and the last code alone stands for none.
template <StateKind kind>
void test_round_trips() {
  for (uint32_t scale = 0; scale < kLastScale<kind>; ++scale) {
    const Context context("scale ", scale);
    for (uint32_t code = 0; code < kCodes<kind>; ++code) {
      const float x = decode<kind>(code, scale);
      const bool is_last = code == kCodes<kind> - 1;
      EXPECT_EQ(std::isfinite(x), !is_last);
      if (code > 0 && !is_last) EXPECT(x > decode<kind>(code - 1, scale));
      for (const uint32_t noise : kNoises) {
        EXPECT_EQ(encode<kind>(x, scale, noise), code);
        if (kind == StateKind::kPositive) continue;
        const float negative = decode<kind>(code | 0x80u, scale);
        if (!is_last) EXPECT_EQ(bits_as<uint32_t>(negative), bits_as<uint32_t>(-x));
        EXPECT_EQ(encode<kind>(negative, scale, noise), code | 0x80u);
      }
    }
    EXPECT_EQ(decode<kind>(0, scale), 0.0f);
  }
}

// One neighbour or the other, the one outwards as often as the distance says.
template <StateKind kind>
void test_roundings() {
  for (uint64_t i = 0; i < 300; ++i) {
    const uint32_t scale = static_cast<uint32_t>(mix(i) % kLastScale<kind>);
    const uint32_t code = 1 + static_cast<uint32_t>(mix(i + 1000) % (kCodes<kind> - 3));
    const double below = decode<kind>(code, scale);
    const double above = decode<kind>(code + 1, scale);
    const double part = static_cast<double>(mix(i + 2000) >> 11) * 0x1p-53;
    const float x = static_cast<float>(below + part * (above - below));
    int64_t up = 0;
    for (uint32_t noise = 0; noise < 0x10000; noise += 16) {
      const uint32_t got = encode<kind>(x, scale, noise);
      EXPECT(got == code || got == code + 1);
      up += got == code + 1;
    }
    const double expected = (x - below) / (above - below);
    EXPECT_NEAR(static_cast<double>(up) / 4096, expected, 1.5 / 4096);
  }
  // The last 4 of 20 digits meet no noise, and are rounded to nearest.
  const uint32_t bits = (100u << kCutDigits) + (90u << 23);
  if (kind == StateKind::kPositive) {
    EXPECT_EQ(encode<kind>(bits_as<float>(bits + 7), 90, 0xffff), 100u);
    EXPECT_EQ(encode<kind>(bits_as<float>(bits + 8), 90, 0xffff), 101u);
  }
}

// The largest of a block takes a code that is a number's and two codes from the end at most, also
// when it is rounded up, so that what grows by little can go on growing.
template <StateKind kind>
void test_scales() {
  uint32_t before = 0;
  // All over the floats, and one by one where a shifted number comes to the last code.
  for (uint32_t bits = 0; bits < kInfinityBits;
       bits += bits % 0x800000 / 0x200 == 0x2fff ? 1 : 0x200) {
    const uint32_t scale = scale_of<kind>(bits);
    EXPECT(scale >= before && scale <= kLastScale<kind>);
    before = scale;
    const float x = bits_as<float>(bits);
    if (bits >= bits_as<uint32_t>(0x1.bffep127f)) continue;  // beyond the last number
    const uint32_t down = encode<kind>(x, scale, 0);
    const uint32_t up = encode<kind>(x, scale, 0xffff);
    EXPECT(up < kCodes<kind> - 1 && up - down <= 1);
    if (bits < kBelowLast) {
      EXPECT_EQ((encode<kind, true>(x, scale, 0)), down);
      EXPECT_EQ((encode<kind, true>(x, scale, 0xffff)), up);
    }
    if (scale > 0) EXPECT(down >= kCodes<kind> - 11);
    // What was rounded is not rounded again at the scale that it makes.
    const float stored = decode<kind>(up, scale);
    if (!std::isfinite(stored)) continue;  // rounded up to infinity, as a float is
    const uint32_t again = scale_of<kind>(finite_magnitude(stored));
    EXPECT(again <= scale);
    EXPECT_EQ(decode<kind>(encode<kind>(stored, again, 0xffff), again), stored);
  }
}

void test_special_values() {
  constexpr auto kPositive = StateKind::kPositive;
  constexpr auto kSigned = StateKind::kSigned;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float gpu_nan = bits_as<float>(0x7fffffffu);
  for (const uint32_t noise : kNoises) {
    for (uint32_t scale = 0; scale <= kLastScale<kPositive>; ++scale) {
      for (const float x : {kInfinity, nan, gpu_nan}) {
        EXPECT_EQ(encode<kPositive>(x, scale, noise), 255u);
        EXPECT_EQ(encode<kSigned>(x, scale, noise), 127u);
      }
      EXPECT_EQ(encode<kSigned>(-kInfinity, scale, noise), 255u);
      EXPECT_EQ(decode<kPositive>(255, scale), kInfinity);
      EXPECT(std::isnan(decode<kSigned>(127, scale)) && std::isnan(decode<kSigned>(255, scale)));
      // No positive square becomes zero, and zero nothing else.
      for (const float x : {kSmallest, 1e-40f, 1e-30f, 1e-10f}) {
        EXPECT(encode<kPositive>(x, scale, noise) >= 1u);
        EXPECT(decode<kPositive>(encode<kPositive>(x, scale, noise), scale) > 0.0f);
      }
      EXPECT_EQ(encode<kPositive>(0.0f, scale, noise), 0u);
      EXPECT_EQ(encode<kSigned>(0.0f, scale, noise), 0u);
      EXPECT_EQ(encode<kSigned>(-0.0f, scale, noise), 0x80u);
    }
  }
  EXPECT_EQ(finite_magnitude(-kLargest), bits_as<uint32_t>(kLargest));
  for (const float x : {kInfinity, -kInfinity, nan, gpu_nan}) EXPECT_EQ(finite_magnitude(x), 0u);
}

// Whole states: outliers, zeros, infinities, denormals and the largest numbers in blocks, the last
// of them cut off.
void test_blocks() {
  constexpr int64_t kNumel = 6 * kCodeBlock + 3;
  for (const StateKind kind : {StateKind::kSigned, StateKind::kPositive}) {
    const bool positive = kind == StateKind::kPositive;
    std::vector<float> values(kNumel);
    for (int64_t i = 0; i < kNumel; ++i) {
      const float x = static_cast<float>(mix(i) >> 40) * 0x1p-24f + 0.01f;
      values[i] = positive || i % 2 == 0 ? x : -x;
    }
    std::fill_n(values.begin() + kCodeBlock, kCodeBlock, 0.0f);
    values[2 * kCodeBlock + 7] = 1e30f;      // an outlier
    values[3 * kCodeBlock + 7] = kInfinity;  // harms no neighbour
    for (int64_t i = 4 * kCodeBlock; i < 5 * kCodeBlock; ++i) values[i] *= 1e-42f;
    for (int64_t i = 5 * kCodeBlock; i < 6 * kCodeBlock; ++i) values[i] *= 0x1.fap127f;
    std::vector<uint8_t> codes(kNumel + 1, 0xab);
    std::vector<uint8_t> scales(count_scales(kNumel) + 1, 0xab);
    EXPECT_EQ(scales.size(), 8u);
    cpu::encode_state(kind, values.data(), kNumel, codes.data(), scales.data());
    EXPECT(codes.back() == 0xab && scales.back() == 0xab);
    std::vector<float> back(kNumel + 1, -7.0f);
    cpu::decode_state(kind, codes.data(), scales.data(), kNumel, back.data());
    EXPECT_EQ(back.back(), -7.0f);
    for (int64_t i = 0; i < kNumel; ++i) {
      const Context context(positive ? "positive " : "signed ", i);
      const int64_t block = i / kCodeBlock;
      EXPECT_EQ(codes[i], positive
                              ? encode<StateKind::kPositive>(values[i], scales[block], kNearest)
                              : encode<StateKind::kSigned>(values[i], scales[block], kNearest));
      if (block == 1) EXPECT_EQ(back[i], 0.0f);
      if (block == 0 || block == 3 || block == 6) {
        if (values[i] == kInfinity) {
          EXPECT(!std::isfinite(back[i]));
        } else {
          EXPECT_NEAR(back[i], values[i], std::abs(values[i]) * 0.0626f);
        }
      }
      if (block == 2 && values[i] == 1e30f) EXPECT_NEAR(back[i], 1e30f, 0.0626e30f);
      if (block == 4 && positive) EXPECT(back[i] > 0.0f && back[i] < 1e-37f);
    }
  }
}

// A mean of squares under beta2 = 0.999 follows its float on average, over steps of a hundredth of
// what lies between two codes, up and down; to nearest it would not move.
void test_slow_means() {
  for (const double target : {4.0, 0.25}) {
    std::vector<float> mean(kCodeBlock, 1.0f);
    double exact = 1.0;
    std::vector<uint8_t> codes(kCodeBlock);
    for (int step = 0; step < 3000; ++step) {
      const Noise noise = Noise::at(3, 1, step);
      uint32_t largest = 0;
      for (float& x : mean) {
        x = x * 0.999f + static_cast<float>(target) * 0.001f;
        largest = std::max(largest, finite_magnitude(x));
      }
      const uint32_t scale = scale_of<StateKind::kPositive>(largest);
      for (int64_t i = 0; i < kCodeBlock; ++i) {
        mean[i] = decode<StateKind::kPositive>(
            encode<StateKind::kPositive>(mean[i], scale, noise(i, 2)), scale);
      }
      exact = exact * 0.999 + target * 0.001;
    }
    double sum = 0.0;
    for (const float x : mean) sum += x;
    EXPECT_NEAR(sum / kCodeBlock, exact, 0.05 * exact);
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast;
  using namespace lrfast::test;
  test_round_trips<StateKind::kSigned>();
  test_round_trips<StateKind::kPositive>();
  test_roundings<StateKind::kSigned>();
  test_roundings<StateKind::kPositive>();
  test_scales<StateKind::kSigned>();
  test_scales<StateKind::kPositive>();
  test_special_values();
  test_blocks();
  test_slow_means();
  return report("test_codes");
}
