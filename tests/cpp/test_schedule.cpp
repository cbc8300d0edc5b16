// Schedules, as both devices evaluate them.
#include <cmath>
#include <vector>

#include "core/schedule.h"

#include "check.h"

namespace lrfast::test {
namespace {

constexpr int64_t kFar = int64_t{1} << 52;

double value_at(const Segment& segment, int64_t step) {
  return evaluate(&segment, Table{0, 1}, step);
}

// Ends are hit exactly and held for ever, whatever the shape.
void test_ends() {
  for (const Shape shape :
       {Shape::kConstant, Shape::kLinear, Shape::kCosine, Shape::kExponential}) {
    const Context context("shape ", shape);
    const Segment s{10, 10.0, 90.0, 0.3, 0.7, std::log(0.7 / 0.3), shape};
    for (const int64_t step : {-kFar, int64_t{-1}, int64_t{0}, int64_t{9}, int64_t{10}}) {
      EXPECT_EQ(value_at(s, step), 0.3);
    }
    for (const int64_t step : {int64_t{100}, int64_t{101}, int64_t{100000}, kFar}) {
      EXPECT_EQ(value_at(s, step), 0.7);
    }
    if (shape == Shape::kConstant) {
      EXPECT_EQ(value_at(s, 99), 0.3);
      continue;
    }
    for (int64_t step = 10; step < 100; ++step) {
      EXPECT(value_at(s, step) < value_at(s, step + 1));
    }
    const Segment point{5, 5.0, 0.0, 0.3, 0.7, 0.0, shape};
    EXPECT_EQ(value_at(point, 4), 0.3);
    EXPECT_EQ(value_at(point, 5), 0.7);
  }
}

// Against long double at every step; t0 and span need not be whole.
void test_shapes() {
  for (const double t0 : {0.0, -2.5, 3.25}) {
    for (const double span : {1.0, 7.5, 1000.0, 100000.0}) {
      const double from = 1.0;
      const double to = 1e-5;
      const double log_ratio = std::log(to / from);
      for (int64_t step = 0; step < 1000; ++step) {
        // Steps near both ends, where a difference of nearly equal numbers would show.
        const int64_t at = step < 500 ? step : static_cast<int64_t>(span + t0) + 500 - step;
        const long double u = (at - static_cast<long double>(t0)) / span;
        if (u <= 0 || u >= 1) continue;
        const auto check = [&](Shape shape, long double exact) {
          const Segment s{0, t0, span, from, to, log_ratio, shape};
          EXPECT_NEAR(value_at(s, at), static_cast<double>(exact),
                      static_cast<double>(4e-15L * exact));
        };
        const long double sine = std::sin(std::acos(-1.0L) / 2 * (1 - u));
        check(Shape::kLinear, from + (static_cast<long double>(to) - from) * u);
        check(Shape::kCosine, to + (static_cast<long double>(from) - to) * sine * sine);
        check(Shape::kExponential, from * std::exp(log_ratio * u));
      }
    }
  }
}

// The search must find the segment that a walk finds, for every count and at every boundary.
void test_search() {
  for (int32_t count = 1; count <= 70; ++count) {
    const Context context(count, " segments");
    std::vector<Segment> segments = {{0, 0.0, 1.0, -1.0, -1.0, 0.0, Shape::kConstant}};
    int64_t begin = 3;
    for (int32_t i = 0; i < count; ++i) {
      segments.push_back({begin, 0.0, 1e9, 1.0 + i, 0.0, 0.0, Shape::kConstant});
      begin += 1 + i % 3;
    }
    const int64_t end = begin;
    segments.push_back({0, 0.0, 1.0, -2.0, -2.0, 0.0, Shape::kConstant});
    for (int64_t step = 0; step < end + 5; ++step) {
      double expected = 1.0;
      for (int32_t i = 1; i <= count; ++i) {
        if (segments[i].begin <= step) expected = segments[i].from;
      }
      EXPECT_EQ(evaluate(segments.data(), Table{1, count}, step), expected);
    }
  }
}

void test_products() {
  const Segment half{0, 0.0, 10.0, 0.5, 0.5, 0.0, Shape::kConstant};
  const Segment down{0, 0.0, 10.0, 1.0, 0.0, 0.0, Shape::kLinear};
  const Segment momentum{0, 0.0, 10.0, 0.95, 0.85, 0.0, Shape::kLinear};
  const Segment segments[] = {half, down, momentum};
  const Table tables[] = {{0, 1}, {1, 1}, {2, 1}};
  const Schedule schedules[] = {{{0, 2}, -1}, {{1, 1}, 2}, {{0, 0}, 2}};
  const ScheduleTables data{segments, tables, schedules};
  EXPECT_EQ(evaluate(data, 0, 5).rate, 0.25);
  EXPECT(!evaluate(data, 0, 5).cycles_momentum);
  EXPECT_EQ(evaluate(data, 1, 5).rate, 0.5);
  EXPECT(evaluate(data, 1, 5).cycles_momentum);
  EXPECT_NEAR(evaluate(data, 1, 5).momentum, 0.9, 1e-15);
  EXPECT_EQ(evaluate(data, 2, 7).rate, 1.0);
  EXPECT_EQ(evaluate(data, 2, 10).momentum, 0.85);
  EXPECT_EQ(evaluate(data, -1, 5).rate, 1.0);
  EXPECT(!evaluate(data, -1, 5).cycles_momentum);
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_ends();
  test_shapes();
  test_search();
  test_products();
  return report("test_schedule");
}
