// Stochastic rounding: the conversion alone, the noise alone, and both in a step.
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "core/dtypes.h"
#include "core/noise.h"

#include "fixture.h"
#include "grid.h"

namespace lrfast::test {
namespace {

// ---- the conversion --------------------------------------------------------------------------

float rounded(float x, uint32_t noise) {
  StochasticBFloat16 out{0xdead};
  from_compute(x, out, noise);
  return to_compute(out);
}

float truncated(float x) { return bits_as<float>(bits_as<uint32_t>(x) & 0xffff0000u); }

// The next bfloat16 away from zero; infinity behind the last one.
float next_outwards(float x) {
  return bits_as<float>((bits_as<uint32_t>(x) & 0xffff0000u) + 0x10000u);
}

// One neighbour or the other, the one outwards exactly where noise and the digits cut off carry.
void test_neighbours() {
  for (uint64_t i = 0; i < 200000; ++i) {
    const float x = bits_as<float>(static_cast<uint32_t>(mix(i)));
    const uint32_t noise = static_cast<uint32_t>(mix(i) >> 32);
    if (!std::isfinite(x)) continue;
    const uint32_t cut = bits_as<uint32_t>(x) & 0xffffu;
    const bool carries = cut + (noise & 0xffffu) >= 0x10000u;
    const float expected = carries ? next_outwards(x) : truncated(x);
    EXPECT_EQ(bits_as<uint32_t>(rounded(x, noise)), bits_as<uint32_t>(expected));
    EXPECT_EQ(rounded(x, 0), truncated(x));
  }
}

// What a bfloat16 can hold comes out as it is, whatever the noise.
void test_exact_values() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = to_compute(BFloat16{static_cast<uint16_t>(bits)});
    for (const uint32_t noise : {0u, 1u, 0x8000u, 0xffffu, 0xffffffffu}) {
      if (std::isnan(x)) {
        EXPECT(std::isnan(rounded(x, noise)));
      } else {
        EXPECT_EQ(bits_as<uint32_t>(rounded(x, noise)), bits << 16);
      }
    }
  }
}

void test_special_values() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kMax = std::numeric_limits<float>::max();
  for (const uint32_t noise : {0u, 0x8000u, 0xffffu, 0xffffffffu}) {
    EXPECT_EQ(rounded(kInfinity, noise), kInfinity);
    EXPECT_EQ(rounded(-kInfinity, noise), -kInfinity);
    // NaN whose payload lies only in the digits that are cut off, or in all of them.
    for (const uint32_t bits : {0x7f800001u, 0x7fc00000u, 0xff800001u, 0x7fffffffu, 0xffffffffu}) {
      EXPECT(std::isnan(rounded(bits_as<float>(bits), noise)));
    }
  }
  // Above the largest bfloat16, infinity is the neighbour.
  EXPECT_EQ(rounded(kMax, 0), truncated(kMax));
  EXPECT_EQ(rounded(kMax, 0xffffu), kInfinity);
  EXPECT_EQ(rounded(-kMax, 0xffffu), -kInfinity);
}

// As a GPU adds the noise, whose only NaN has all digits set, but for those of bfloat16s: the same.
void test_gpu_addition() {
  auto expect_same = [](uint32_t bits, uint32_t noise) {
    StochasticBFloat16 out{0xdead};
    from_compute(bits_as<float>(bits), out, noise);
    EXPECT_EQ(add_noise(bits_as<float>(bits), noise) >> 16, uint32_t{out.bits});
  };
  for (uint64_t i = 0; i < 200000; ++i) {
    const uint32_t bits = static_cast<uint32_t>(mix(i));
    if (std::isnan(bits_as<float>(bits))) continue;
    expect_same(bits, static_cast<uint32_t>(mix(i) >> 48));
  }
  for (const uint32_t noise : {0u, 1u, 0x8000u, 0xffffu}) {
    for (const uint32_t bits : {0x7f800000u, 0x7f7fffffu, 0x7fffffffu, 0u, 1u, 0x7fffffu}) {
      expect_same(bits, noise);
      if (bits != 0x7fffffffu) expect_same(bits | 0x80000000u, noise);
    }
    for (const uint32_t bits : {0x7f810000u, 0xff810000u, 0x7fff0000u, 0xffff0000u}) {
      EXPECT(std::isnan(bits_as<float>(add_noise(bits_as<float>(bits), noise) & 0xffff0000u)));
    }
  }
}

// The mean over the noise of 2^16 elements. A single rounding's deviation is half a gap at most, so
// that of the mean is below 2^-9 of a gap; 2^-7 is four of them.
void test_mean() {
  const Noise noise = Noise::at(1, 2, 3);
  for (const float x : {1.001f, 1.0039f, -3.3f, 0.7f, 1e-30f, 123456.7f, 1e-39f}) {
    const Context context("mean of ", x);
    double sum = 0.0;
    for (int64_t i = 0; i < 65536; ++i) sum += rounded(x, noise(i, 0));
    const double gap = std::fabs(static_cast<double>(next_outwards(x)) - truncated(x));
    EXPECT_NEAR(sum / 65536, static_cast<double>(x), gap * 0x1p-7);
  }
  // All noises once: the mean is exact.
  double sum = 0.0;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) sum += rounded(1.001f, bits);
  EXPECT_EQ(sum / 65536, static_cast<double>(1.001f));
}

// ---- the noise -------------------------------------------------------------------------------

constexpr int kValues = 1 + kMaxStates;  // of an element

// Its place among tensors, steps, elements and states decides, and so does the seed.
void test_distinct() {
  std::set<uint32_t> keys;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1} << 40, ~uint64_t{0} - 100}) {
    for (uint32_t tensor = 0; tensor < 30; ++tensor) {
      for (int64_t step = 0; step < 30; ++step) {
        keys.insert(Noise::at(seed, tensor, step).key);
        EXPECT_EQ(Noise::at(seed, tensor, step).key, Noise::at(seed, tensor, step).key);
      }
    }
  }
  EXPECT_EQ(keys.size(), size_t{3 * 30 * 30});
  const Noise noise = Noise::at(5, 6, 7);
  for (int which = 0; which < kValues; ++which) {
    std::set<uint32_t> values;
    for (uint32_t pair = 0; pair < 10000; ++pair) {
      const uint32_t both = Noise::of_value(noise.of_pair(pair), which);
      values.insert(both);
      EXPECT_EQ(noise(2 * pair, which), both & 0xffffu);
      EXPECT_EQ(noise(2 * pair + 1, which), both >> 16);
    }
    EXPECT_EQ(values.size(), size_t{10000});
  }
}

// Two at once are what each of them is alone, also beside an infinity or a NaN.
void test_pairs() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (uint64_t i = 0; i < 20000; ++i) {
    float x[2] = {bits_as<float>(static_cast<uint32_t>(mix(i))),
                  bits_as<float>(static_cast<uint32_t>(mix(i) >> 32))};
    if (i % 7 == 0) x[i % 2] = kInfinity;
    if (i % 11 == 0) x[i % 2] = NAN;
    const uint32_t noise = static_cast<uint32_t>(mix(i + 1));
    StochasticBFloat16 both[2];
    from_compute(x, both, noise);
    for (const int k : {0, 1}) {
      const float alone = rounded(x[k], k == 0 ? noise & 0xffffu : noise >> 16);
      EXPECT_EQ(bits_as<uint32_t>(to_compute(both[k])), bits_as<uint32_t>(alone));
    }
    float wide[2];
    to_compute(both, wide);
    for (const int k : {0, 1}) {
      EXPECT_EQ(bits_as<uint32_t>(wide[k]), bits_as<uint32_t>(to_compute(both[k])));
    }
  }
}

// Share of the 2^16 elements in which both noises agree on a bit: a half, but for chance. Its
// deviation is 2^-9. A shift of 1 compares what two neighbours take of one hash, and of two; one of
// 2^32, what elements take whose numbers differ above their lower 32 bits.
double agreement(const Noise& a, const Noise& b, int64_t shift, int first, int second, int bit) {
  int64_t same = 0;
  for (int64_t i = 0; i < 65536; ++i) {
    same += ((a(i, first) ^ b(i + shift, second)) >> bit & 1u) == 0;
  }
  return static_cast<double>(same) / 65536;
}

// Chi-square of how often the noises of an element's three values fall together into each cell of a
// cube with 8 cells a side: 511 expected, with a deviation of 32.
double chi_square(const Noise& noise, int first, int second, int third) {
  constexpr int64_t kElements = 512 * 256;
  int64_t counts[512] = {};
  for (int64_t i = 0; i < kElements; ++i) {
    ++counts[(noise(i, first) >> 13) << 6 | (noise(i, second) >> 13) << 3 | noise(i, third) >> 13];
  }
  double sum = 0.0;
  for (const int64_t count : counts) sum += (count - 256.0) * (count - 256.0) / 256.0;
  return sum;
}

void test_independence() {
  const Noise noise = Noise::at(5, 6, 7);
  const double kBound = 5 * 0x1p-9;
  for (int bit = 0; bit < 16; ++bit) {  // those that a rounding uses
    const Context context("bit ", bit);
    for (const int64_t shift : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{1} << 32}) {
      EXPECT_NEAR(agreement(noise, noise, shift, 0, 0, bit), 0.5, kBound);
    }
    for (int first = 0; first < kValues; ++first) {
      for (int second = first + 1; second < kValues; ++second) {
        for (const int64_t shift : {0, 1}) {
          EXPECT_NEAR(agreement(noise, noise, shift, first, second, bit), 0.5, kBound);
        }
      }
    }
    EXPECT_NEAR(agreement(noise, Noise::at(5, 7, 7), 0, 0, 0, bit), 0.5, kBound);
    EXPECT_NEAR(agreement(noise, Noise::at(5, 6, 8), 0, 0, 0, bit), 0.5, kBound);
    EXPECT_NEAR(agreement(noise, Noise::at(6, 6, 7), 0, 0, 0, bit), 0.5, kBound);
  }
  for (const uint64_t seed : {1, 2, 3}) {
    const Noise other = Noise::at(seed, 6, 7);
    for (int left_out = 0; left_out < kValues; ++left_out) {
      const int first = left_out == 0 ? 1 : 0;
      const int second = left_out <= 1 ? 2 : 1;
      EXPECT_NEAR(chi_square(other, first, second, left_out == 3 ? 2 : 3), 511.0, 5 * 32.0);
    }
  }
}

// ---- in a step -------------------------------------------------------------------------------

// Two tensors of 1 with equal gradients, whose update is a quarter of the gap below 1, so that
// nearest rounding would leave them where they are.
Plan make_ones(uint64_t seed) {
  GroupRow group{};
  group.hypers[Sgd::kRate] = 0x1p-10;
  group.schedule = -1;
  Options options;
  options.seed = seed;
  Plan plan(kPlace<Sgd>,
            {{65536, DtypePair::kStochasticBFloat16}, {65536, DtypePair::kStochasticBFloat16}},
            {group}, 10000, options);
  for (Tensor& tensor : plan.tensors) {
    for (int64_t i = 0; i < tensor.spec.numel; ++i) {
      put(1.0, tensor.param.as<StochasticBFloat16>()[i]);
      put(1.0, tensor.grad.as<StochasticBFloat16>()[i]);
    }
  }
  return plan;
}

void step(Plan& plan, bool on_cpu) {
  if (on_cpu) {
    cpu_step(plan);
  } else {
    Grid(kPlace<Sgd>, 3, 64).step(plan.tables());
  }
}

int64_t equal_elements(const Tensor& a, const Tensor& b) {
  int64_t equal = 0;
  for (int64_t i = 0; i < a.spec.numel; ++i) {
    equal += a.param.as<uint16_t>()[i] == b.param.as<uint16_t>()[i];
  }
  return equal;
}

void test_steps() {
  for (const bool on_cpu : {false, true}) {
    const Context context("steps, on the CPU ", on_cpu);
    Plan plan = make_ones(1);
    Plan again = make_ones(1);
    Plan other = make_ones(2);
    for (Plan* each : {&plan, &again, &other}) step(*each, on_cpu);
    EXPECT_SAME(plan, again);
    // Five of eight elements agree by chance: both moved, 1/16, or neither, 9/16.
    const double chance = 0.625 * 65536;
    EXPECT_NEAR(equal_elements(plan.tensors[0], plan.tensors[1]) / chance, 1.0, 0.02);
    EXPECT_NEAR(equal_elements(plan.tensors[0], other.tensors[0]) / chance, 1.0, 0.02);
    double sum = 0.0;
    for (int64_t i = 0; i < 65536; ++i) {
      sum += to_compute(plan.tensors[0].param.as<StochasticBFloat16>()[i]);
    }
    EXPECT_NEAR(sum / 65536, 1.0 - 0x1p-10, 0x1p-8 * 0x1p-7);
    // From the same weights, but one step later: other bits.
    Plan later = make_ones(1);
    later.clock.as<Clock>()->steps += 1;
    step(later, on_cpu);
    EXPECT_NEAR(equal_elements(plan.tensors[0], later.tensors[0]) / chance, 1.0, 0.02);
    // Where a schedule stands does not matter.
    Plan rescheduled = make_ones(1);
    rescheduled.clock.as<Clock>()->applied = 9;
    step(rescheduled, on_cpu);
    EXPECT_EQ(equal_elements(plan.tensors[0], rescheduled.tensors[0]), 65536);
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_neighbours();
  test_exact_values();
  test_special_values();
  test_gpu_addition();
  test_mean();
  test_distinct();
  test_pairs();
  test_independence();
  test_steps();
  return report("test_noise");
}
