// Schedules, as both devices evaluate them.
#include <cmath>
#include <vector>

#include "core/schedule.h"

#include "check.h"

namespace lrfast::test {
namespace {

constexpr int64_t kFar = int64_t{1} << 52;

Segment make_segment(Shape shape, double from, double to, double t0, double span, double p = 1) {
  Segment s{static_cast<int64_t>(std::fmax(t0, 0.0)), t0, span, from, to, 1.0, 0.0, 0, shape};
  prepare_segment(s, p);
  return s;
}

Table make_table(int32_t first, int32_t count, int64_t begin = 0) {
  return {begin, 1, 0, 0.0, 0.0, 0.0, first, count};
}

double value_at(const Segment& segment, int64_t step) {
  return interpolate(segment, nullptr, step);
}

// Ends are hit exactly and held for ever, whatever the shape.
void test_ends() {
  for (const Shape shape : {Shape::kConstant, Shape::kLinear, Shape::kCosine, Shape::kExponential,
                            Shape::kPolynomial, Shape::kPower, Shape::kInverse, Shape::kRex}) {
    const Context context("shape ", shape);
    const Segment s = make_segment(shape, 0.7, 0.3, 10, 90, 0.5);
    for (const int64_t step : {-kFar, int64_t{-1}, int64_t{0}, int64_t{9}, int64_t{10}}) {
      EXPECT_EQ(value_at(s, step), 0.7);
    }
    for (const int64_t step : {int64_t{100}, int64_t{101}, int64_t{100000}, kFar}) {
      EXPECT_EQ(value_at(s, step), 0.3);
    }
    if (shape == Shape::kConstant) {
      EXPECT_EQ(value_at(s, 99), 0.7);
      continue;
    }
    for (int64_t step = 10; step < 100; ++step) {
      EXPECT(value_at(s, step) > value_at(s, step + 1));
    }
    const Segment point = make_segment(shape, 0.7, 0.3, 5, 0);
    EXPECT_EQ(value_at(point, 4), 0.7);
    EXPECT_EQ(value_at(point, 5), 0.3);
  }
}

// Against long double at every step; t0 and span need not be whole.
void test_shapes() {
  constexpr long double kFrom = 1.0;
  constexpr long double kTo = 1e-5;
  for (const double t0 : {0.0, -2.5, 3.25}) {
    for (const double span : {1.0, 7.5, 1000.0, 100000.0}) {
      for (int64_t step = 0; step < 1000; ++step) {
        // Steps near both ends, where a difference of nearly equal numbers would show.
        const int64_t at = step < 500 ? step : static_cast<int64_t>(span + t0) + 500 - step;
        const long double u = (at - static_cast<long double>(t0)) / span;
        if (u <= 0 || u >= 1) continue;
        const auto check = [&](Shape shape, double power, long double exact) {
          const Segment s = make_segment(shape, 1.0, 1e-5, t0, span, power);
          // A power multiplies the error of the logarithm.
          EXPECT_NEAR(value_at(s, at), static_cast<double>(exact),
                      static_cast<double>((power == 1.0 ? 4e-15L : 4e-14L) * exact));
        };
        const auto down = [&](long double rest) { return kTo + (kFrom - kTo) * rest; };
        const long double sine = std::sin(std::acos(-1.0L) / 2 * (1 - u));
        check(Shape::kLinear, 1, down(1 - u));
        check(Shape::kExponential, 1, std::pow(kTo, u));
        for (const double p : {1.0, 0.5, 2.0, 3.7}) {
          check(Shape::kCosine, p, down(std::pow(sine * sine, static_cast<long double>(p))));
          check(Shape::kPolynomial, p, down(std::pow(1 - u, static_cast<long double>(p))));
          const long double rest = 1 - std::pow(u, static_cast<long double>(p));
          const Segment s = make_segment(Shape::kPower, 1.0, 1e-5, t0, span, p);
          EXPECT_NEAR(value_at(s, at), static_cast<double>(down(rest)), 1e-15);
          const long double growth = std::pow(1e5L, 1 / static_cast<long double>(p)) - 1;
          check(Shape::kInverse, p, std::pow(1 + growth * u, -static_cast<long double>(p)));
        }
        check(Shape::kRex, 0.5, down((1 - u) / (1 - u / 2)));
      }
    }
  }
}

void test_lookup() {
  const double values[] = {9.0, 0.5, 0.25, 0.125, 9.0};
  Segment s = make_segment(Shape::kLookup, 0.5, 0.125, 7, 2);
  s.values = 1;
  const double expected[] = {0.5, 0.5, 0.25, 0.125, 0.125};
  for (int64_t i = 0; i < 5; ++i) EXPECT_EQ(interpolate(s, values, 6 + i), expected[i]);
}

// The search must find the segment that a walk finds, for every count and at every boundary.
void test_search() {
  for (int32_t count = 1; count <= 70; ++count) {
    const Context context(count, " segments");
    std::vector<Segment> segments = {make_segment(Shape::kConstant, -1, -1, 0, 1)};
    int64_t begin = 3;
    for (int32_t i = 0; i < count; ++i) {
      segments.push_back(make_segment(Shape::kConstant, 1.0 + i, 0, 0, 1e9));
      segments.back().begin = begin;
      begin += 1 + i % 3;
    }
    const int64_t end = begin;
    segments.push_back(make_segment(Shape::kConstant, -2, -2, 0, 1));
    const ScheduleTables data{segments.data(), nullptr, nullptr, nullptr, nullptr};
    for (int64_t step = 0; step < end + 5; ++step) {
      double expected = 1.0;
      for (int32_t i = 1; i <= count; ++i) {
        if (segments[i].begin <= step) expected = segments[i].from;
      }
      EXPECT_EQ(evaluate(data, make_table(1, count), step), expected);
    }
  }
}

// A sawtooth of five steps: cycle and step within it, gain, decay and floor, before and after
// begin.
void test_repeats() {
  const Segment tooth = make_segment(Shape::kLinear, 1.0, 0.0, 0, 5);
  const ScheduleTables data{&tooth, nullptr, nullptr, nullptr, nullptr};
  Table table = make_table(0, 1, 3);
  table.period = 5;
  for (int64_t step = 0; step < 100; ++step) {
    const int64_t elapsed = step > 3 ? step - 3 : 0;
    const double plain = 1.0 - elapsed % 5 / 5.0;
    EXPECT_NEAR(evaluate(data, table, step), plain, 1e-15);
    Table halved = table;
    halved.log_gain = std::log(0.5);
    halved.floor = 0.25;
    const double exact = 0.25 + (plain - 0.25) * std::pow(0.5, elapsed / 5);
    EXPECT_NEAR(evaluate(data, halved, step), exact, 1e-15);
    Table faded = halved;
    faded.log_decay = std::log(0.9);
    const double both = 0.25 + (exact - 0.25) * std::pow(0.9, elapsed);
    EXPECT_NEAR(evaluate(data, faded, step), both, 1e-15);
  }
  table.log_gain = std::log(0.999);
  for (const int64_t cycle : {1, 64, 1000, 100000, 600000}) {
    const double exact = std::pow(0.999, cycle);
    EXPECT_NEAR(evaluate(data, table, 3 + 5 * cycle), exact, 2e-13 * exact);
  }
  table.log_gain = -1e300;  // stands for a gain of 0
  EXPECT_EQ(evaluate(data, table, 3), 1.0);
  EXPECT_EQ(evaluate(data, table, 8), 0.0);
  EXPECT_EQ(evaluate(data, table, 3 + 5 * int64_t{1000000000}), 0.0);
}

// A table that stands still for seven steps at a time has the values of one that does not, in
// their order: cycles, gain and decay too.
void test_strides() {
  const Segment tooth = make_segment(Shape::kCosine, 1.0, 0.0, 0, 5);
  const ScheduleTables data{&tooth, nullptr, nullptr, nullptr, nullptr};
  Table plain = make_table(0, 1);
  plain.period = 5;
  plain.log_gain = std::log(0.8);
  plain.log_decay = std::log(0.9);
  plain.floor = 0.1;
  Table still = plain;
  still.begin = 3;
  still.stride = 7;
  for (int64_t step = 0; step < 300; ++step) {
    const int64_t epoch = step > 3 ? (step - 3) / 7 : 0;
    EXPECT_EQ(evaluate(data, still, step), evaluate(data, plain, epoch));
  }
  still.begin = 0;
  for (int64_t epoch = kFar / 7 - 3; epoch <= kFar / 7; ++epoch) {
    EXPECT_EQ(evaluate(data, still, 7 * epoch), evaluate(data, plain, epoch));
    EXPECT_EQ(evaluate(data, still, 7 * epoch - 1), evaluate(data, plain, epoch - 1));
  }
}

void test_tracks() {
  const Segment segments[] = {make_segment(Shape::kConstant, 0.5, 0.5, 0, 10),
                              make_segment(Shape::kLinear, 1, 0, 0, 10),
                              make_segment(Shape::kLinear, 0.95, 0.85, 0, 10)};
  const Table tables[] = {make_table(0, 1), make_table(1, 1), make_table(2, 1),
                          make_table(0, 1, 4)};
  const Track tracks[] = {{0, 1, Channel::kRate},     {1, 1, Channel::kRate},
                          {2, 1, Channel::kMomentum}, {0, 1, Channel::kWeightDecay},
                          {2, 2, Channel::kRate},     {1, 1, Channel::kWeightDecay}};
  const Schedule schedules[] = {{0, 2, 0}, {1, 3, 1}, {2, 1, 1}, {4, 2, 0}};
  const ScheduleTables data{segments, nullptr, tables, tracks, schedules};
  EXPECT_EQ(evaluate_schedule(data, 0, 5).rate, 0.25);
  EXPECT(!evaluate_schedule(data, 0, 5).cycles_momentum);
  EXPECT_EQ(evaluate_schedule(data, 0, 5).weight_decay, 1.0);
  EXPECT_EQ(evaluate_schedule(data, 1, 5).rate, 0.5);
  EXPECT(evaluate_schedule(data, 1, 5).cycles_momentum);
  EXPECT_NEAR(evaluate_schedule(data, 1, 5).momentum, 0.9, 1e-15);
  EXPECT_EQ(evaluate_schedule(data, 1, 5).weight_decay, 0.5);
  EXPECT_EQ(evaluate_schedule(data, 2, 7).rate, 1.0);
  EXPECT_EQ(evaluate_schedule(data, 2, 10).momentum, 0.85);
  EXPECT_EQ(evaluate_schedule(data, 3, 0).rate, 0.95);
  EXPECT_EQ(evaluate_schedule(data, 3, 4).rate, 0.5);
  EXPECT_EQ(evaluate_schedule(data, 3, 10).weight_decay, 0.0);
  EXPECT_EQ(evaluate_schedule(data, -1, 5).rate, 1.0);
  EXPECT(!evaluate_schedule(data, -1, 5).cycles_momentum);
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_ends();
  test_shapes();
  test_lookup();
  test_search();
  test_repeats();
  test_strides();
  test_tracks();
  return report("test_schedule");
}
