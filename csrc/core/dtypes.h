// Element types of parameters, gradients and states, and their conversion to the type that the
// arithmetic runs in. Half and bfloat16 compute in float; a double never meets a half.
#pragma once

#include <cstdint>

#include "core/platform.h"

namespace lrfast {

// std::bit_cast is a host function to nvcc.
template <class To, class From>
LRFAST_HD To bits_as(const From& x) {
  return __builtin_bit_cast(To, x);
}

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// A bfloat16 that is rounded up or down at random, so that small updates survive on average.
struct StochasticBFloat16 {
  uint16_t bits;
};

// Element types of one parameter (and its gradient) and of its states. Torch keeps states in their
// parameter's type; a checkpoint, or state_dtype, may bring others.
enum class DtypePair : uint8_t {
  kFloat32,
  kFloat64,
  kBFloat16,
  kFloat16,
  kBFloat16StatesFloat32,
  kFloat16StatesFloat32,
  kFloat32StatesBFloat16,
  kStochasticBFloat16,
  kStochasticBFloat16StatesFloat32,
};

// Whether parameters are float16.
LRFAST_HD bool is_float16(DtypePair dtypes) {
  return dtypes == DtypePair::kFloat16 || dtypes == DtypePair::kFloat16StatesFloat32;
}

template <class Element>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class Element>
using compute_t = typename ComputeType<Element>::type;

LRFAST_HD float to_compute(float x) { return x; }
LRFAST_HD double to_compute(double x) { return x; }

LRFAST_HD float to_compute(BFloat16 x) {
  return bits_as<float>(static_cast<uint32_t>(x.bits) << 16);
}

LRFAST_HD float to_compute(StochasticBFloat16 x) { return to_compute(BFloat16{x.bits}); }

LRFAST_HD float to_compute(Float16 x) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  // Branch-free, so that it vectorises: a normal half is moved into a float's fields and rescaled
  // by 2^-112; a subnormal one is the exact difference of two floats.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const float normal = bits_as<float>(magnitude + (112u << 23));
  const float special = bits_as<float>(magnitude + (224u << 23));  // infinity or NaN
  const float subnormal = bits_as<float>(magnitude + (113u << 23)) - bits_as<float>(113u << 23);
  const float value = magnitude >= (31u << 23) ? special
                      : magnitude < (1u << 23) ? subnormal
                                               : normal;
  return bits_as<float>(bits_as<uint32_t>(value) | sign);
#endif
}

LRFAST_HD void from_compute(float x, float& out) { out = x; }
LRFAST_HD void from_compute(double x, double& out) { out = x; }

// Round to nearest, ties to even; NaN stays NaN.
LRFAST_HD void from_compute(float x, BFloat16& out) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const uint32_t kept = x != x ? 0x7fffffffu : rounded;
  out.bits = static_cast<uint16_t>(kept >> 16);
#endif
}

// The bits of x after noise was added to the digits that are cut off. Infinity has none to carry
// over. NaN stays what it is if it is a GPU's (all its digits are ones) or a bfloat16's (those cut
// off are zeros): a carry makes the greatest number the least, and the greater one is kept. One
// instruction from sm_90 on; a comparison would be one more.
LRFAST_HD uint32_t add_noise(float x, uint32_t noise) {
  const int32_t before = bits_as<int32_t>(x);
  const int32_t sum = static_cast<int32_t>(bits_as<uint32_t>(x) + noise);
  return static_cast<uint32_t>(sum > before ? sum : before);
}

// Rounds away from zero with the probability that the digits cut off stand for: noise is added to
// them, and what it carries over counts. Infinity and NaN stay.
LRFAST_HD void from_compute(float x, StochasticBFloat16& out, uint32_t noise) {
#if defined(__CUDA_ARCH__)
  const uint32_t sum = add_noise(x, noise & 0xffffu);
#else  // any NaN
  const uint32_t sum = x != x ? 0x7fffffffu : bits_as<uint32_t>(x) + (noise & 0xffffu);
#endif
  out.bits = static_cast<uint16_t>(sum >> 16);
}

// Two neighbours at once, or the second of them: a GPU holds both in one register, where taking out
// a half and widening it would be two instructions.
LRFAST_HD float second_to_compute(const float* x) { return x[1]; }
LRFAST_HD float second_to_compute(const StochasticBFloat16* x) {
#if defined(__CUDA_ARCH__)
  float second;
  asm("{\n"
      ".reg .b32 both;\n"
      "mov.b32 both, {%1, %2};\n"
      "and.b32 %0, both, 0xffff0000;\n"
      "}"
      : "=f"(second)
      : "h"(x[0].bits), "h"(x[1].bits));
  return second;
#else
  return to_compute(x[1]);
#endif
}
LRFAST_HD void to_compute(const StochasticBFloat16* x, float (&out)[2]) {
  out[0] = to_compute(x[0]);
  out[1] = second_to_compute(x);
}

// The same with the halves of one noise, the low one first.
LRFAST_HD void from_compute(const float (&x)[2], StochasticBFloat16* out, uint32_t noise) {
#if defined(__CUDA_ARCH__)
  asm("{\n"
      ".reg .b32 both;\n"
      "prmt.b32 both, %2, %3, 0x7632;\n"
      "mov.b32 {%0, %1}, both;\n"
      "}"
      : "=h"(out[0].bits), "=h"(out[1].bits)
      : "r"(add_noise(x[0], noise & 0xffffu)), "r"(add_noise(x[1], noise >> 16)));
#else
  from_compute(x[0], out[0], noise & 0xffffu);
  from_compute(x[1], out[1], noise >> 16);
#endif
}

LRFAST_HD void from_compute(float x, Float16& out) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
  // Subnormal results are rounded by the float adder itself (adding 0.5 puts the half's last bit at
  // the float's last bit); normal ones by adding the tie-to-even carry before the shift.
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t subnormal =
      bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - bits_as<uint32_t>(0.5f);
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t overflowed = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;  // NaN : infinity
  const uint32_t half = magnitude >= (143u << 23) ? overflowed : finite;
  out.bits = static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
#endif
}

// Calls visit.template operator()<Param, State>() with the element types that dtypes names.
template <class Visitor>
LRFAST_HD void with_types(DtypePair dtypes, Visitor&& visit) {
  switch (dtypes) {
    case DtypePair::kFloat32:
      return visit.template operator()<float, float>();
    case DtypePair::kFloat64:
      return visit.template operator()<double, double>();
    case DtypePair::kBFloat16:
      return visit.template operator()<BFloat16, BFloat16>();
    case DtypePair::kFloat16:
      return visit.template operator()<Float16, Float16>();
    case DtypePair::kBFloat16StatesFloat32:
      return visit.template operator()<BFloat16, float>();
    case DtypePair::kFloat16StatesFloat32:
      return visit.template operator()<Float16, float>();
    case DtypePair::kFloat32StatesBFloat16:
      return visit.template operator()<float, BFloat16>();
    case DtypePair::kStochasticBFloat16:
      return visit.template operator()<StochasticBFloat16, StochasticBFloat16>();
    case DtypePair::kStochasticBFloat16StatesFloat32:
      return visit.template operator()<StochasticBFloat16, float>();
  }
}

}  // namespace lrfast
