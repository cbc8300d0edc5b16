// Three plans made alike, stepped by a grid, by the CPU driver and by the plain reference.
#pragma once

#include <cmath>

#include "grid.h"
#include "reference.h"

namespace lrfast::test {

// cpu/norms.cpp's bound for a sum of squares. A norm's error is half of that, on either side.
constexpr double kSumTolerance = 0x1p-19;

struct Trio {
  Plan on_grid;
  Plan on_cpu;
  Plan plain;

  template <class Make>
  explicit Trio(const Make& make) : on_grid(make()), on_cpu(make()), plain(make()) {}

  void step(Grid& grid) {
    grid.step(on_grid.tables());
    cpu_step(on_cpu);
    reference_step(plain);
  }
};

// Equal, both NaN, or as near as the order of summands allows.
LRFAST_NOINLINE inline bool is_near_sum(double a, double b) {
  return a == b || (a != a && b != b) || std::fabs(a - b) <= kSumTolerance * std::fabs(b);
}

LRFAST_NOINLINE inline void expect_near_sums(const GuardedBytes& a, const GuardedBytes& b,
                                             const char* name) {
  const Context context(name);
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size() / sizeof(double); ++i) {
    const double left = a.as<double>()[i];
    const double right = b.as<double>()[i];
    const bool near = is_near_sum(left, right);
    tally().passed += near;
    if (!near) fail(__FILE__, __LINE__, text("sum ", i, ": ", left, " and ", right));
  }
}

// A numerator has summands of both signs: its error counts by the denominator, too.
LRFAST_NOINLINE inline void expect_near_distance(const Plan& a, const Plan& b) {
  const Distance& left = a.clock.as<Clock>()->distance;
  const Distance& right = b.clock.as<Clock>()->distance;
  EXPECT(is_near_sum(left.denominator, right.denominator));
  const double scale = std::fabs(right.numerator) + right.denominator;
  const bool near = std::fabs(left.numerator - right.numerator) <= kSumTolerance * scale;
  EXPECT(near || (left.numerator != left.numerator && right.numerator != right.numerator));
}

// The same bits in all that a step updates, the same sums but for their last digits.
LRFAST_NOINLINE inline void expect_agreement(const Trio& trio) {
  EXPECT_SAME(trio.on_grid, trio.plain);
  EXPECT_SAME(trio.on_cpu, trio.plain);
  for (const Plan* plan : {&trio.on_grid, &trio.on_cpu}) {
    EXPECT(plan->is_intact());
    if (plan->has_norms()) expect_near_sums(plan->norms, trio.plain.norms, "norms");
    expect_near_sums(plan->records, trio.plain.records, "records");
    expect_near_distance(*plan, trio.plain);
  }
  EXPECT_EQ(trio.on_grid.clock.as<Clock>()->blocks_done, 0);
}

// Two steps, because the second finds what the first has left: counts, clock, blocks_done.
template <class Make>
LRFAST_NOINLINE void expect_two_steps(const Make& make, Grid grid) {
  Trio trio(make);
  for (int step = 0; step < 2; ++step) trio.step(grid);
  expect_agreement(trio);
}

}  // namespace lrfast::test
