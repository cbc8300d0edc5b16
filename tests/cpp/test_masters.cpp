// Master weights: what a float32 becomes as a half and the bits beside it, and back.
#include <cmath>
#include <limits>

#include "core/masters.h"
#include "core/noise.h"

#include "check.h"

namespace lrfast::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A kind of master weights: bits of which type beside which halves.
template <class RestType, bool float16>
struct Kind {
  using Rest = RestType;
  static constexpr bool kIsFloat16 = float16;
  static constexpr MasterKind kMaster{float16, sizeof(Rest) == 1};
  static constexpr int kRestDigits = 8 * sizeof(Rest);
  static constexpr int kDigits = kRestDigits + (float16 ? 11 : 8);  // that are significant
  static constexpr int kLeast = float16 ? -14 : -126;               // exponent of normal numbers
  static constexpr double kEnd = float16 ? 0x1p16 : 0x1p128;        // from here on infinite
};

struct Split {
  float kept;
  uint16_t half;
};

template <class Kind>
float join(uint16_t half, typename Kind::Rest rest) {
  return join_master(half, wide_rest(rest), Kind::kMaster);
}

template <class Kind>
float widened(uint16_t half) {
  return Kind::kIsFloat16 ? to_compute(Float16{half}) : to_compute(BFloat16{half});
}

template <class Kind>
Split split(float x) {
  Split found{x, 0};
  typename Kind::Rest rest = 0;
  narrow_rest(split_master(found.kept, found.half, Kind::kMaster), rest);
  // x has become what is kept of it.
  EXPECT_EQ(bits_as<uint32_t>(join<Kind>(found.half, rest)), bits_as<uint32_t>(found.kept));
  EXPECT_EQ(bits_as<uint32_t>(round_master(x, Kind::kMaster)), bits_as<uint32_t>(found.kept));
  return found;
}

// The nearest number of so many significant digits, or, below the normal ones, places; ties to even
// or away from zero.
template <class Kind>
double nearest(double x, int digits, bool even) {
  int exponent = 0;
  std::frexp(x, &exponent);
  const int least = exponent - 1 > Kind::kLeast ? exponent - 1 : Kind::kLeast;
  const double unit = std::ldexp(1.0, least - digits + 1);
  const double whole = even ? std::nearbyint(x / unit) : std::round(x / unit);
  return std::fabs(whole * unit) < Kind::kEnd ? whole * unit : std::copysign(kInfinity, x);
}

// All bits of a float in steps that meet every exponent, both signs, every tie and its neighbours,
// of halves and of weights; a half of them have exponents that float16 has, too.
template <class Check>
void for_many(const Check& check) {
  for (uint64_t i = 0; i < 400'000; ++i) {
    uint32_t bits = static_cast<uint32_t>(mix(i));
    if (i % 8 >= 4) bits = (bits & 0x807fffffu) | (80 + static_cast<uint32_t>(i / 8 % 66)) << 23;
    if (i % 4 == 1) bits = (bits & ~0xffffu) + 0x7ffeu + i % 5;  // around a tie of the halves
    if (i % 4 == 2) bits = (bits & ~0xffu) + 0x7eu + i % 5;      // and of the 24 bits
    if (i % 8 == 3) bits &= 0x80ffffffu;                         // denormals, and the smallest
    if (i % 8 == 7) bits = (bits & ~0x1fffu) + (i % 3 ? 0xffeu : 0xeu) + i % 5;  // float16's ties
    check(bits_as<float>(bits));
  }
}

// Ties of parameters go away from zero: to even, both neighbours of one would have the same half
// and rest.
template <class Kind>
void test_weights_and_halves_are_the_nearest() {
  for_many([](float x) {
    const auto [kept, half] = split<Kind>(x);
    const float own = widened<Kind>(half);
    if (x != x) {
      EXPECT(kept != kept && std::signbit(kept) == std::signbit(x) && own != own);
      return;
    }
    // Rounded to 16 digits more than a half's, and then to 8 of them.
    const double whole = nearest<Kind>(x, Kind::kDigits - Kind::kRestDigits + 16, true);
    EXPECT_EQ(kept, nearest<Kind>(whole, Kind::kDigits, true));
    EXPECT_EQ(own, nearest<Kind>(kept, Kind::kDigits - Kind::kRestDigits, false));
    EXPECT(std::signbit(kept) == std::signbit(x) && std::signbit(own) == std::signbit(x));
    EXPECT_EQ(bits_as<uint32_t>(split<Kind>(kept).kept), bits_as<uint32_t>(kept));
    const bool is_exact = Kind::kDigits >= 24 && std::fabs(x) < Kind::kEnd &&
                          (!Kind::kIsFloat16 || std::fabs(x) >= 0x1p-17f);
    if (is_exact) EXPECT_EQ(kept, x);
  });
}

template <class Kind>
void test_special_values() {
  for (const float sign : {1.0f, -1.0f}) {
    for (const float x : {0.0f * sign, kInfinity * sign, sign, 1.5f * sign}) {
      EXPECT_EQ(bits_as<uint32_t>(split<Kind>(x).kept), bits_as<uint32_t>(x));
      EXPECT_EQ(bits_as<uint32_t>(widened<Kind>(split<Kind>(x).half)), bits_as<uint32_t>(x));
    }
    // A GPU's NaN, and one whose digits all lie in the rest.
    for (const uint32_t bits : {0x7fffffffu, 0x7f800001u}) {
      const auto [kept, half] = split<Kind>(bits_as<float>(bits | (sign < 0 ? 1u << 31 : 0u)));
      EXPECT(std::isnan(kept) && std::isnan(widened<Kind>(half)));
    }
    // Above the last half the parameter is infinite, and the weight still a number if it has one.
    const float largest = sign * std::numeric_limits<float>::max();
    EXPECT_EQ(widened<Kind>(split<Kind>(largest).half), sign * kInfinity);
    const bool has_one = Kind::kDigits >= 24 && !Kind::kIsFloat16;
    EXPECT_EQ(split<Kind>(largest).kept, has_one ? largest : sign * kInfinity);
    if (!Kind::kIsFloat16) continue;
    EXPECT_EQ(widened<Kind>(split<Kind>(sign * 65520.0f).half), sign * kInfinity);
    EXPECT_EQ(split<Kind>(sign * 65520.0f).kept, sign * 65520.0f);
  }
}

// Every half with a fresh rest is itself; with one of another weight it is off by half a unit in
// its last place at most, never turns into no number, nor changes its sign, and no step without an
// update changes it.
template <class Kind>
void test_other_rests() {
  using Rest = typename Kind::Rest;
  constexpr Rest kLeast = std::numeric_limits<Rest>::min();
  constexpr Rest kMost = std::numeric_limits<Rest>::max();
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float weight = widened<Kind>(half);
    const float fresh = join<Kind>(half, Rest{0});
    EXPECT(std::signbit(fresh) == std::signbit(weight));
    EXPECT(weight != weight ? fresh != fresh : fresh == weight);
    if (!std::isfinite(weight)) continue;
    const float next = widened<Kind>(static_cast<uint16_t>(half + 1));
    const float before =
        (half & 0x7fffu) == 0 ? weight : widened<Kind>(static_cast<uint16_t>(half - 1));
    for (const Rest rest : {kLeast, Rest{kLeast + 1}, Rest{kMost - 1}, kMost}) {
      const float found = join<Kind>(half, rest);
      EXPECT(std::isfinite(found) && std::signbit(found) == std::signbit(weight));
      const double unit = rest < 0              ? static_cast<double>(weight) - before
                          : std::isfinite(next) ? static_cast<double>(next) - weight
                                                : static_cast<double>(weight) - before;
      EXPECT(std::fabs(static_cast<double>(found) - weight) <= 0.5 * std::fabs(unit));
      if ((half & 0x7fffu) == 0) continue;
      EXPECT_EQ(join<Kind>(static_cast<uint16_t>(half ^ 0x8000u), rest), -found);
      EXPECT_EQ(split<Kind>(found).half, half);
      EXPECT_EQ(split<Kind>(found).kept, found);
    }
  }
}

template <class Kind>
void test_kind() {
  test_weights_and_halves_are_the_nearest<Kind>();
  test_special_values<Kind>();
  test_other_rests<Kind>();
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_kind<Kind<int8_t, false>>();
  test_kind<Kind<int16_t, false>>();
  test_kind<Kind<int8_t, true>>();
  test_kind<Kind<int16_t, true>>();
  return report("test_masters");
}
