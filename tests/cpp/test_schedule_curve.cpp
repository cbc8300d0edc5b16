// Schedules and the loss curve, as both devices evaluate them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/curve.h"
#include "core/schedule.h"

#include "check.h"

namespace lrfast::test {
namespace {

constexpr int64_t kFar = int64_t{1} << 52;

// ---- schedules -------------------------------------------------------------------------------

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

// ---- the curve -------------------------------------------------------------------------------

struct Curve {
  explicit Curve(int64_t capacity, double stop = 0.0, double beta = 0.9)
      : losses(capacity, -1.0), rates(2 * capacity, -1.0) {
    state.flagged_at = -1.0;
    rows = {&state, losses.data(), rates.data(), capacity, 2, beta, stop};
  }
  Curve(const Curve&) = delete;
  void add(double loss) {
    const double now[] = {state.count, -state.count};
    record(rows, loss, now);
  }

  CurveState state{};
  std::vector<double> losses;
  std::vector<double> rates;
  CurveRows rows;
};

void test_record() {
  Curve curve(3);
  const double given[] = {4.0, 2.0, 8.0, 1.0, 3.0};
  for (const double loss : given) curve.add(loss);
  EXPECT_EQ(curve.state.count, 5.0);
  EXPECT_EQ(curve.state.last, 3.0);
  EXPECT_EQ(curve.state.flag, kRunning);
  EXPECT_EQ(curve.state.flagged_at, -1.0);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(curve.losses[i], given[i]);
    EXPECT_EQ(curve.rates[2 * i], static_cast<double>(i));
    EXPECT_EQ(curve.rates[2 * i + 1], static_cast<double>(-i));
  }
  // The weighted mean, from its definition.
  double sum = 0.0;
  double weights = 0.0;
  for (int i = 0; i < 5; ++i) {
    sum += std::pow(0.9, 4 - i) * given[i];
    weights += std::pow(0.9, 4 - i);
  }
  EXPECT_NEAR(curve.state.ema.value(), sum / weights, 1e-14);
  EXPECT_NEAR(curve.state.best, (0.9 * 4.0 + 2.0) / 1.9, 1e-14);
  EXPECT_EQ(curve.state.best_at, 1.0);

  std::vector<double> smoothed(5);
  smooth_ema(given, smoothed.data(), 5, 0.9);
  EXPECT_EQ(smoothed[0], 4.0);
  EXPECT_EQ(smoothed[1], curve.state.best);
  EXPECT_EQ(smoothed[4], curve.state.ema.value());
}

// beta = 0 smooths nothing, so that the losses themselves are judged.
void test_divergence() {
  Curve curve(4, 4.0, 0.0);
  for (const double loss : {2.0, 1.0, 4.0}) curve.add(loss);
  EXPECT_EQ(curve.state.flag, kRunning);
  curve.add(4.001);
  EXPECT_EQ(curve.state.flag, kDiverged);
  EXPECT_EQ(curve.state.flagged_at, 3.0);
  curve.add(0.5);
  curve.add(NAN);
  EXPECT_EQ(curve.state.flag, kDiverged);
  EXPECT_EQ(curve.state.flagged_at, 3.0);
  EXPECT_EQ(curve.state.best, 0.5);

  Curve negative(4, 4.0, 0.0);
  for (const double loss : {-1.0, 1.9}) negative.add(loss);
  EXPECT_EQ(negative.state.flag, kRunning);
  negative.add(2.1);
  EXPECT_EQ(negative.state.flag, kDiverged);

  Curve endless(4, 0.0, 0.0);
  for (const double loss : {1.0, 1e30}) endless.add(loss);
  EXPECT_EQ(endless.state.flag, kRunning);
}

void test_non_finite() {
  for (const double bad : {NAN, INFINITY, -INFINITY}) {
    Curve curve(4);
    curve.add(1.0);
    curve.add(bad);
    curve.add(3.0);
    EXPECT_EQ(curve.state.flag, kNonFinite);
    EXPECT_EQ(curve.state.flagged_at, 1.0);
    EXPECT_EQ(curve.state.count, 3.0);
    EXPECT_NEAR(curve.state.ema.value(), (0.9 * 1.0 + 3.0) / 1.9, 1e-14);
    EXPECT_EQ(std::isfinite(curve.losses[1]), false);

    const double values[] = {1.0, bad, 3.0};
    double out[3];
    smooth_ema(values, out, 3, 0.9);
    EXPECT_EQ(out[0], 1.0);
    EXPECT(std::isnan(out[1]));
    EXPECT_EQ(out[2], curve.state.ema.value());
  }
}

void test_load_loss() {
  const float single = 1.5f;
  const double wide = 1.1;
  const BFloat16 bfloat{0x3fc0};
  const Float16 half{0x3e00};
  EXPECT_EQ(load_loss(&single, LossType::kFloat32), 1.5);
  EXPECT_EQ(load_loss(&wide, LossType::kFloat64), 1.1);
  EXPECT_EQ(load_loss(&bfloat, LossType::kBFloat16), 1.5);
  EXPECT_EQ(load_loss(&half, LossType::kFloat16), 1.5);
}

void test_moving_average_and_derivative() {
  for (const int64_t count : {1, 2, 3, 10}) {
    std::vector<double> values;
    std::vector<double> x;
    for (int64_t i = 0; i < count; ++i) {
      values.push_back(3.0 * static_cast<double>(i * i));
      x.push_back(static_cast<double>(i) / 2);
    }
    for (int64_t i = 0; i < count; ++i) {
      for (const int64_t window : {1, 2, 3, 4, 5, 99}) {
        const Context context("average of ", window, " at ", i, " of ", count);
        const int64_t reach = std::min({(window - 1) / 2, i, count - 1 - i});
        double sum = 0.0;
        for (int64_t k = i - reach; k <= i + reach; ++k) sum += values[k];
        EXPECT_EQ(moving_average(values.data(), count, window, i), sum / (2 * reach + 1));
      }
      for (const int64_t reach : {1, 2, 99}) {
        const Context context("derivative over ", reach, " at ", i, " of ", count);
        const int64_t left = std::max<int64_t>(i - reach, 0);
        const int64_t right = std::min(i + reach, count - 1);
        if (left == right) continue;
        // Of 12 x^2, between two points: twelve times the sum of the two x.
        EXPECT_EQ(derivative(values.data(), x.data(), count, reach, i),
                  12.0 * (x[left] + x[right]));
      }
    }
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_ends();
  test_shapes();
  test_search();
  test_products();
  test_record();
  test_divergence();
  test_non_finite();
  test_load_loss();
  test_moving_average_and_derivative();
  return report("test_schedule_curve");
}
