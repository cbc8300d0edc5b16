// The few transcendental functions that a schedule or a bias correction needs, built from + - * /
// alone, so that the CPU and the GPU agree to the last bit: libm and CUDA's library do not.
// Each runs a handful of times per step, never per element.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/platform.h"

namespace lrfast {

// base^exponent for exponent >= 0, by squaring: at most 2 * 63 multiplications.
LRFAST_HD double integer_power(double base, int64_t exponent) {
  double result = 1.0;
  LRFAST_NO_UNROLL
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// sin(pi/2 * x) for x in [0, 1]. Taylor series on the half of the range where it converges to below
// 1e-18 in nine terms.
LRFAST_HD double sine_of_quarter_turn(double x) {
  constexpr double kHalfPi = 1.57079632679489661923;
  const bool near_zero = x <= 0.5;
  const double angle = kHalfPi * (near_zero ? x : 1.0 - x);
  const double square = angle * angle;
  double term = near_zero ? angle : 1.0;
  double sum = term;
  const int first = near_zero ? 2 : 1;
  LRFAST_NO_UNROLL
  for (int k = first; k < first + 18; k += 2) {
    term *= -square / (k * (k + 1.0));
    sum += term;
  }
  return sum;
}

// 2^n for n from -1022 to 1023: the bits of its exponent. ldexp does the same for every n, and
// takes a kernel's registers for it.
LRFAST_HD double power_of_two(int64_t n) {
  const int64_t bits = (n + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof(power));
  return power;
}

// e^x for x < 700, and 0 below -700. x = n ln 2 + r with |r| <= ln 2 / 2, then 14 Taylor terms of
// e^r.
LRFAST_HD double exponential(double x) {
  if (x < -700.0) return 0.0;
  constexpr double kInverseLn2 = 1.44269504088896338700;
  constexpr double kLn2High = 6.93147180369123816490e-01;  // ln 2 to 33 bits: n * high is exact
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  const double n = std::floor(x * kInverseLn2 + 0.5);
  const double r = (x - n * kLn2High) - n * kLn2Low;
  double sum = 1.0;
  LRFAST_NO_UNROLL
  for (int k = 14; k >= 1; --k) sum = 1.0 + sum * r / k;
  return sum * power_of_two(static_cast<int64_t>(n));
}

// ln(x) for normal x > 0. x = m 2^n with m in [sqrt(1/2), sqrt(2)), then ln m = 2 artanh(s) with
// s = (m - 1) / (m + 1), |s| < 0.172: ten terms of its series leave 1e-17.
LRFAST_HD double logarithm(double x) {
  constexpr double kLn2High = 6.93147180369123816490e-01;  // ln 2 to 33 bits: n * high is exact
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  constexpr int64_t kRootOfHalf = 0x3fe6a09e667f3bcd;  // its bits
  int64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const int64_t exponent = (bits - kRootOfHalf) >> 52;
  const double n = static_cast<double>(exponent);
  const double m = x * power_of_two(-exponent);
  const double s = (m - 1.0) / (m + 1.0);
  const double square = s * s;
  double sum = 0.0;
  LRFAST_NO_UNROLL
  for (int k = 21; k >= 3; k -= 2) sum = (sum + 1.0 / k) * square;
  return n * kLn2High + (2.0 * s * (1.0 + sum) + n * kLn2Low);
}

// base^exponent for base >= 0, up to e^700; 0 for a base of 0, but 1 for 0^0.
LRFAST_HD double real_power(double base, double exponent) {
  if (exponent >= 0.0 && exponent < 64.0 && exponent == std::floor(exponent)) {
    return integer_power(base, static_cast<int64_t>(exponent));
  }
  if (base < 2.2250738585072014e-308) return 0.0;
  const double power = exponent * logarithm(base);
  return exponential(power < 699.0 ? power : 699.0);
}

}  // namespace lrfast
