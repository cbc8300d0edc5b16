// Master weights: what a float32 becomes as a bfloat16 and the bits beside it, and back.
#include <cmath>
#include <limits>

#include "core/masters.h"
#include "core/noise.h"

#include "check.h"

namespace lrfast::test {
namespace {

template <class Rest>
float round_trip(float x) {
  uint16_t half = 0;
  Rest rest = 0;
  split_master(x, half, rest);
  const float back = join_master(half, rest);
  EXPECT_EQ(bits_as<uint32_t>(back), bits_as<uint32_t>(x));  // which has become what is kept
  return back;
}

template <class Rest>
float half_of(float x) {
  uint16_t half = 0;
  Rest rest = 0;
  split_master(x, half, rest);
  return to_compute(BFloat16{half});
}

// To the nearest multiple of 256 in its bits, in double: neighbours with one exponent lie evenly.
float cut(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const float below = bits_as<float>(bits & ~0xffu);
  const float above = bits_as<float>((bits & ~0xffu) + 0x100u);
  if (!std::isfinite(above)) return (bits & 0xffu) >= 0x80u ? above : below;
  const double middle = 0.5 * (static_cast<double>(below) + above);
  const bool is_even = (bits >> 8 & 1u) == 0u;
  if (x == middle) return is_even ? below : above;
  return std::fabs(x) < std::fabs(middle) ? below : above;
}

// All bits of a float in steps that meet every exponent, both signs, every tie and its neighbours.
template <class Check>
void for_many(const Check& check) {
  for (uint64_t i = 0; i < 400'000; ++i) {
    uint32_t bits = static_cast<uint32_t>(mix(i));
    if (i % 4 == 1) bits = (bits & ~0xffffu) + 0x7ffeu + i % 5;  // around a tie of the halves
    if (i % 4 == 2) bits = (bits & ~0xffu) + 0x7eu + i % 5;      // and of the 24 bits
    if (i % 4 == 3) bits &= 0x80ffffffu;                         // denormals, and the smallest
    check(bits_as<float>(bits));
  }
}

void test_every_float_is_kept_in_32_bits() {
  for_many([](float x) {
    const float back = round_trip<int16_t>(x);
    if (x != x) {
      EXPECT(back != back && std::signbit(back) == std::signbit(x));
    } else {
      EXPECT_EQ(bits_as<uint32_t>(back), bits_as<uint32_t>(x));
    }
  });
}

void test_24_bits_are_the_nearest() {
  for_many([](float x) {
    const float back = round_trip<int8_t>(x);
    if (x != x) {
      EXPECT(back != back && std::signbit(back) == std::signbit(x));
    } else {
      EXPECT_EQ(bits_as<uint32_t>(back), bits_as<uint32_t>(cut(x)));
      EXPECT_EQ(bits_as<uint32_t>(round_trip<int8_t>(back)), bits_as<uint32_t>(back));
    }
  });
}

// Ties go away from zero: to even, both neighbours of one would have the same half and rest.
template <class Rest>
void test_halves_are_the_nearest() {
  for_many([](float x) {
    const float kept = round_trip<Rest>(x);
    const float half = half_of<Rest>(x);
    BFloat16 nearest{};
    from_compute(kept, nearest);
    const bool is_tie = (bits_as<uint32_t>(kept) & 0xffffu) == 0x8000u;
    const uint32_t away = (bits_as<uint32_t>(kept) + 0x8000u) & ~0xffffu;
    if (x != x) {
      EXPECT(half != half);
    } else {
      EXPECT_EQ(bits_as<uint32_t>(half), is_tie ? away : bits_as<uint32_t>(to_compute(nearest)));
    }
  });
}

template <class Rest>
void test_special_values() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float sign : {1.0f, -1.0f}) {
    for (const float x : {0.0f * sign, kInfinity * sign, sign, 1.5f * sign}) {
      EXPECT_EQ(bits_as<uint32_t>(round_trip<Rest>(x)), bits_as<uint32_t>(x));
      EXPECT_EQ(bits_as<uint32_t>(half_of<Rest>(x)), bits_as<uint32_t>(x));
    }
    // A GPU's NaN, and one whose digits all lie in the rest.
    for (const uint32_t bits : {0x7fffffffu, 0x7f800001u}) {
      const float nan = bits_as<float>(bits | (sign < 0 ? 0x80000000u : 0u));
      EXPECT(std::isnan(round_trip<Rest>(nan)) && std::isnan(half_of<Rest>(nan)));
    }
    // Above the last bfloat16 the half is infinite, and the weight still a number if it has one.
    const float largest = sign * std::numeric_limits<float>::max();
    EXPECT_EQ(half_of<Rest>(largest), sign * kInfinity);
    EXPECT_EQ(round_trip<Rest>(largest), sizeof(Rest) == 2 ? largest : sign * kInfinity);
  }
}

// Every bfloat16 with a fresh rest is itself; with one of another weight it is off by half a unit
// in its last place at most, and never turns into no number, nor changes its sign.
template <class Rest>
void test_other_rests() {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float weight = to_compute(BFloat16{half});
    EXPECT_EQ(bits_as<uint32_t>(join_master(half, Rest{0})), bits_as<uint32_t>(weight));
    if (!std::isfinite(weight)) continue;
    const float next = to_compute(BFloat16{static_cast<uint16_t>(half + 1)});
    const float before =
        (half & 0x7fffu) == 0 ? weight : to_compute(BFloat16{static_cast<uint16_t>(half - 1)});
    for (const Rest rest : {std::numeric_limits<Rest>::min(), std::numeric_limits<Rest>::max()}) {
      const float found = join_master(half, rest);
      EXPECT(std::isfinite(found) && std::signbit(found) == std::signbit(weight));
      const double unit = rest < 0              ? static_cast<double>(weight) - before
                          : std::isfinite(next) ? static_cast<double>(next) - weight
                                                : std::fabs(weight) * 0x1p-7;
      EXPECT(std::fabs(static_cast<double>(found) - weight) <= 0.5 * std::fabs(unit));
      if ((half & 0x7fffu) == 0) continue;
      EXPECT_EQ(join_master(static_cast<uint16_t>(half ^ 0x8000u), rest), -found);
    }
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_every_float_is_kept_in_32_bits();
  test_24_bits_are_the_nearest();
  test_halves_are_the_nearest<int8_t>();
  test_halves_are_the_nearest<int16_t>();
  test_special_values<int8_t>();
  test_special_values<int16_t>();
  test_other_rests<int8_t>();
  test_other_rests<int16_t>();
  return report("test_masters");
}
