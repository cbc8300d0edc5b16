// Element types against a slow conversion in double, and the few transcendental functions against
// long double libm.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/dtypes.h"
#include "core/math.h"

#include "check.h"

namespace lrfast::test {
namespace {

// ---- half and bfloat16 -----------------------------------------------------------------------

// A binary format of 16 bits, spelled out from IEEE 754's definition.
template <class T>
struct Format;
template <>
struct Format<Float16> {
  static constexpr int kMantissa = 10;
  static constexpr int kBias = 15;
};
template <>
struct Format<BFloat16> {
  static constexpr int kMantissa = 7;
  static constexpr int kBias = 127;
};

template <class T>
double decode(uint16_t bits) {
  constexpr int kMantissa = Format<T>::kMantissa;
  constexpr int kTop = 2 * Format<T>::kBias + 1;
  const int exponent = (bits & 0x7fff) >> kMantissa;
  const int mantissa = bits & ((1 << kMantissa) - 1);
  double value;
  if (exponent == kTop) {
    value = mantissa == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    value = std::ldexp(mantissa, 1 - Format<T>::kBias - kMantissa);
  } else {
    value = std::ldexp(mantissa + (1 << kMantissa), exponent - Format<T>::kBias - kMantissa);
  }
  return bits & 0x8000 ? -value : value;
}

// The nearest value of the format, ties to the even one. A float is exact in double, and so is its
// quotient by a power of two; nearbyint() does the rest.
template <class T>
double round_slowly(float x) {
  if (!std::isfinite(x) || x == 0.0f) return x;
  int exponent;
  std::frexp(static_cast<double>(x), &exponent);
  const int lowest = 1 - Format<T>::kBias;
  const int quantum = std::max(exponent - 1, lowest) - Format<T>::kMantissa;
  const double rounded =
      std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(x), -quantum)), quantum);
  const double limit = std::ldexp(1.0, Format<T>::kBias + 1);
  return std::fabs(rounded) >= limit ? std::copysign(INFINITY, rounded) : rounded;
}

template <class T>
LRFAST_NOINLINE void expect_rounded(float x) {
  T out{0xdead};
  from_compute(x, out);
  const double value = decode<T>(out.bits);
  const double expected = round_slowly<T>(x);
  const bool same = std::isnan(x) ? std::isnan(value)
                                  : value == expected && std::signbit(value) == std::signbit(x);
  tally().passed += same;
  if (!same) fail(__FILE__, __LINE__, text(x, " became ", value, ", not ", expected));
}

template <class T>
void test_patterns() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const T narrow{static_cast<uint16_t>(bits)};
    const float wide = to_compute(narrow);
    const double expected = decode<T>(narrow.bits);
    T back{0xdead};
    from_compute(wide, back);
    if (std::isnan(expected)) {
      EXPECT(std::isnan(wide));
      EXPECT(std::isnan(decode<T>(back.bits)));
      continue;
    }
    EXPECT_EQ(static_cast<double>(wide), expected);
    EXPECT_EQ(std::signbit(wide), bits >= 0x8000);
    EXPECT_EQ(back.bits, narrow.bits);
  }
}

// All ties between neighbours and the floats beside them, the last finite value's and infinity's
// included, with both signs.
template <class T>
void test_ties() {
  const uint16_t infinity = (2 * Format<T>::kBias + 1) << Format<T>::kMantissa;
  for (uint16_t bits = 0; bits < infinity; ++bits) {
    const double low = decode<T>(bits);
    const double high =
        bits + 1 < infinity ? decode<T>(bits + 1) : std::ldexp(1.0, Format<T>::kBias + 1);
    const float tie = static_cast<float>(low + (high - low) / 2);
    for (const float x : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, INFINITY)}) {
      expect_rounded<T>(x);
      expect_rounded<T>(-x);
    }
  }
}

template <class T>
void test_floats() {
  for (const float x : {0.0f, FLT_TRUE_MIN, FLT_MIN, 65504.0f, 65519.996f, 65520.0f, 65536.0f,
                        1e30f, FLT_MAX, INFINITY, NAN}) {
    expect_rounded<T>(x);
    expect_rounded<T>(-x);
  }
  // NaN whose payload lies only in the digits that are cut off, or in all of them.
  for (const uint32_t bits : {0x7f800001u, 0x7f801000u, 0xff800001u, 0x7fffffffu, 0xffffffffu}) {
    expect_rounded<T>(bits_as<float>(bits));
  }
  uint32_t random = 1;
  for (int i = 0; i < 1000000; ++i) {
    random = random * 1664525u + 1013904223u;
    expect_rounded<T>(bits_as<float>(random));
    // The same digits where a half is subnormal or nearly so: random exponents seldom are.
    expect_rounded<T>(bits_as<float>((random & 0x807fffffu) | ((100 + random % 18) << 23)));
  }
}

// The types that each pair names: everything else finds its types through with_types() itself.
template <class Param, class State>
void expect_types(DtypePair dtypes) {
  const Context context("dtypes ", dtypes);
  int visits = 0;
  with_types(dtypes, [&]<class FoundParam, class FoundState>() {
    visits += 1;
    EXPECT((std::is_same_v<FoundParam, Param>));
    EXPECT((std::is_same_v<FoundState, State>));
  });
  EXPECT_EQ(visits, 1);
}

void test_kinds() {
  expect_types<float, float>(DtypePair::kFloat32);
  expect_types<double, double>(DtypePair::kFloat64);
  expect_types<BFloat16, BFloat16>(DtypePair::kBFloat16);
  expect_types<Float16, Float16>(DtypePair::kFloat16);
  expect_types<BFloat16, float>(DtypePair::kBFloat16StatesFloat32);
  expect_types<Float16, float>(DtypePair::kFloat16StatesFloat32);
  expect_types<float, BFloat16>(DtypePair::kFloat32StatesBFloat16);
  expect_types<StochasticBFloat16, StochasticBFloat16>(DtypePair::kStochasticBFloat16);
  expect_types<StochasticBFloat16, float>(DtypePair::kStochasticBFloat16StatesFloat32);
  EXPECT((std::is_same_v<compute_t<BFloat16>, float>));
  EXPECT((std::is_same_v<compute_t<Float16>, float>));
  EXPECT((std::is_same_v<compute_t<StochasticBFloat16>, float>));
  EXPECT((std::is_same_v<compute_t<double>, double>));
}

// ---- functions -------------------------------------------------------------------------------

LRFAST_NOINLINE void expect_ulps(const char* name, double x, double value, long double exact,
                                 double ulps) {
  const double nearest = static_cast<double>(exact);
  const double ulp = std::nextafter(std::fabs(nearest), INFINITY) - std::fabs(nearest);
  const long double error = std::fabs(static_cast<long double>(value) - exact);
  const bool holds = error <= ulps * ulp;
  tally().passed += holds;
  if (!holds) {
    fail(__FILE__, __LINE__, text(name, "(", x, "): ", value, " not ", exact, ", ulp ", ulp));
  }
}

void test_sine() {
  const long double half_pi = std::acos(-1.0L) / 2;
  const auto check = [&](double x) {
    expect_ulps("sine", x, sine_of_quarter_turn(x), std::sin(half_pi * x), 4);
  };
  for (int i = 0; i <= 200000; ++i) check(i / 200000.0);
  for (int e = -60; e < 0; ++e) {
    check(std::ldexp(1.0, e));
    check(1.0 - std::ldexp(1.0, e));
  }
  check(std::nextafter(0.5, 0.0));
  check(std::nextafter(0.5, 1.0));
  EXPECT_EQ(sine_of_quarter_turn(0.0), 0.0);
  EXPECT_EQ(sine_of_quarter_turn(1.0), 1.0);
}

void test_exponential() {
  const auto check = [](double x) {
    expect_ulps("exponential", x, exponential(x), std::exp(static_cast<long double>(x)), 4);
  };
  for (int i = -200000; i <= 200000; ++i) {
    check(i * (699.999 / 200000));
    check(i * (2.0 / 200000));
  }
  // Both sides of each change of the power of two.
  for (int n = -1000; n < 1000; ++n) {
    const double boundary = (n + 0.5) * std::log(2.0);
    check(boundary);
    check(std::nextafter(boundary, -INFINITY));
    check(std::nextafter(boundary, INFINITY));
  }
  check(1e-300);
  check(-1e-300);
  EXPECT_EQ(exponential(0.0), 1.0);
}

// Squaring doubles the error it starts from, so the bound grows with the exponent: half an ulp per
// multiplication of the plain product. What a bias correction makes of it stays small.
void test_power() {
  for (const double base : {0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0001, 1.1, -0.9, 3.0}) {
    for (int64_t exponent = 1; exponent <= 5000; ++exponent) {
      const long double exact = std::pow(static_cast<long double>(base), exponent);
      if (std::fabs(exact) > DBL_MAX || std::fabs(exact) < DBL_MIN) break;
      const double value = integer_power(base, exponent);
      // A relative error of 2^-53 is up to one ulp.
      expect_ulps("integer_power", base, value, exact, exponent <= 5 ? 4.0 : exponent - 1.0);
      if (base > 0.0 && base < 1.0) {
        const double correction = static_cast<double>(1.0L - exact);
        EXPECT_NEAR(1.0 - value, correction, 1e-12 * correction);
      }
    }
  }
  for (const double base : {0.0, 0.3, -2.0, 1e300}) {
    EXPECT_EQ(integer_power(base, 0), 1.0);
    EXPECT_EQ(integer_power(base, 1), base);
  }
  EXPECT_EQ(integer_power(2.0, 1000), 0x1p1000);
  EXPECT_EQ(integer_power(-2.0, 3), -8.0);
  EXPECT_EQ(integer_power(0.0, 5), 0.0);
  EXPECT_EQ(integer_power(1.0, std::numeric_limits<int64_t>::max()), 1.0);
  EXPECT_EQ(integer_power(0.9, int64_t{1} << 40), 0.0);
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast;
  using namespace lrfast::test;
  test_patterns<Float16>();
  test_patterns<BFloat16>();
  test_ties<Float16>();
  test_ties<BFloat16>();
  test_floats<Float16>();
  test_floats<BFloat16>();
  test_kinds();
  test_sine();
  test_exponential();
  test_power();
  return report("test_math");
}
