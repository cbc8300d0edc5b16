// The loss curve, as both devices record and evaluate it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/curve.h"

#include "check.h"

namespace lrfast::test {
namespace {

// ---- recording -------------------------------------------------------------------------------

struct Curve {
  explicit Curve(int64_t capacity, double stop = 0.0, double beta = 0.9, int64_t grace = 0)
      : losses(capacity, -1.0), rates(2 * capacity, -1.0) {
    state.flagged_at = -1.0;
    rows = {&state, losses.data(), rates.data(), capacity, 2, beta, stop, grace};
  }
  Curve(const Curve&) = delete;
  void add(double loss, bool skipped = false) {
    const double now[] = {state.count, -state.count};
    copy_rates(rows, record_loss(rows, loss, skipped), now, 0, 1);
  }

  CurveState state{};
  std::vector<double> losses;
  std::vector<double> rates;
  CurveRows rows;
};

void test_record() {
  Curve curve(5);
  const double given[] = {4.0, 2.0, 8.0, 1.0, 3.0};
  for (const double loss : given) curve.add(loss);
  const CurveState full = curve.state;
  for (const double loss : {7.0, std::nan("")}) curve.add(loss);  // past the capacity
  EXPECT_EQ(std::memcmp(&full, &curve.state, sizeof(full)), 0);
  EXPECT_EQ(curve.state.count, 5.0);
  EXPECT_EQ(curve.state.last, 3.0);
  EXPECT_EQ(curve.state.first, 4.0);
  EXPECT_EQ(curve.state.flag, kRunning);
  EXPECT_EQ(curve.state.flagged_at, -1.0);
  for (int i = 0; i < 5; ++i) {
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

// A skipped step leaves no trace, unless its loss is not finite.
void test_skip() {
  Curve curve(4);
  Curve without(4);
  for (const double loss : {3.0, 2.5}) {
    curve.add(loss);
    curve.add(100.0, true);
    without.add(loss);
  }
  EXPECT_EQ(std::memcmp(&curve.state, &without.state, sizeof(CurveState)), 0);
  EXPECT(curve.losses == without.losses);
  EXPECT(curve.rates == without.rates);
  curve.add(NAN, true);
  EXPECT_EQ(curve.state.count, 3.0);
  EXPECT_EQ(curve.state.flag, kNonFinite);
  EXPECT_EQ(curve.state.flagged_at, 2.0);

  const double loss = 1.5;
  const float no = 0.0f;
  const float yes = 1.0f;
  const Scalar value{&loss, FloatType::kFloat64};
  for (const float* skip : {static_cast<const float*>(nullptr), &no, &yes}) {
    Curve one(1);
    record(one.rows, value, nullptr, {skip, FloatType::kFloat32});
    EXPECT_EQ(one.state.count, skip == &yes ? 0.0 : 1.0);
    EXPECT_EQ(one.losses[0], skip == &yes ? -1.0 : 1.5);
    EXPECT_EQ(one.rates[0], -1.0);  // no rate came: as planned
  }
}

// The first index that is flagged, or -1.
double flagged_at(const std::vector<double>& losses, double stop, double beta) {
  Curve curve(static_cast<int64_t>(losses.size()), stop, beta);
  for (const double loss : losses) curve.add(loss);
  return curve.state.flag == kDiverged ? curve.state.flagged_at : -1.0;
}

// beta = 0 smooths nothing, so that the losses themselves are judged; their noise is then the size
// of the last step, over the root of two.
void test_divergence() {
  Curve curve(6, 4.0, 0.0);
  for (const double loss : {1.0, 1.0, 4.0}) curve.add(loss);
  EXPECT_EQ(curve.state.flag, kRunning);  // at the limit
  EXPECT_NEAR(curve.state.noise, 3.0 / std::sqrt(2.0), 1e-15);
  curve.add(0.9);
  curve.add(1.0);
  curve.add(4.0);
  EXPECT_EQ(curve.state.flag, kDiverged);
  EXPECT_EQ(curve.state.flagged_at, 5.0);

  Curve once(6, 4.0, 0.0);
  for (const double loss : {1.0, 4.001, 0.5, 9.0, std::nan("")}) once.add(loss);
  EXPECT_EQ(once.state.flag, kDiverged);
  EXPECT_EQ(once.state.flagged_at, 1.0);
  EXPECT_EQ(once.state.best, 0.5);

  EXPECT_EQ(flagged_at({1.0, 1e30}, 0.0, 0.0), -1.0);

  Curve patient(3, 4.0, 0.0, 2);  // a loss that is not judged counts in best and noise all the same
  for (const double loss : {1.0, 9.0, 0.5}) patient.add(loss);
  EXPECT_EQ(patient.state.flag, kRunning);
  EXPECT_EQ(patient.state.best, 0.5);
  Curve judged(3, 4.0, 0.0, 2);
  for (const double loss : {1.0, 1.0, 9.0}) judged.add(loss);
  EXPECT_EQ(judged.state.flagged_at, 2.0);
}

// Which of best, drop / 10 and noise the rise is measured in, each once, just within and beyond.
void test_units_of_the_rise() {
  std::vector<double> falling(12, 0.0);
  for (int i = 0; i < 12; ++i) falling[i] = -50.0 - 0.5 * i;  // to -55.5: a drop of 5.5
  const auto then = [](std::vector<double> losses, double next) {
    losses.push_back(next);
    return losses;
  };
  EXPECT_EQ(flagged_at(then(falling, -55.5 + 3.0 * 0.549), 4.0, 0.0), -1.0);
  EXPECT_EQ(flagged_at(then(falling, -55.5 + 3.0 * 0.551), 4.0, 0.0), 12.0);

  // To and fro by 1: the noise is 1 / sqrt(2), the drop 1.
  std::vector<double> noisy(12, -7.0);
  for (int i = 1; i < 12; i += 2) noisy[i] = -8.0;
  EXPECT_EQ(flagged_at(then(noisy, -8.0 + 3.0 * 0.707), 4.0, 0.0), -1.0);
  EXPECT_EQ(flagged_at(then(noisy, -8.0 + 3.0 * 0.708), 4.0, 0.0), 12.0);
  noisy.resize(10);  // nine losses are not enough for a best of 0 or less
  noisy[9] = 1e9;
  EXPECT_EQ(flagged_at(noisy, 4.0, 0.0), -1.0);
  EXPECT_EQ(flagged_at(then(noisy, 1e9), 4.0, 0.0), 10.0);

  for (const double constant : {0.0, -3.7, -1e300}) {
    const std::vector<double> equal(500, constant);
    for (const double beta : {0.0, 0.5, 0.98}) {
      EXPECT_EQ(flagged_at(equal, 1.000001, beta), -1.0);
      EXPECT_EQ(flagged_at(then(equal, 1.0), 1.000001, beta), -1.0);  // the first one that differs
    }
  }
  std::vector<double> rising(100, 0.0);
  for (int i = 50; i < 100; ++i) rising[i] = std::pow(3.0, i - 50);
  EXPECT(flagged_at(rising, 4.0, 0.98) > 50.0);
  EXPECT(flagged_at(rising, 4.0, 0.98) < 60.0);
}

void test_noise() {
  Curve curve(6, 0.0, 0.5);
  curve.add(2.0);
  EXPECT_EQ(curve.state.half_squares.weight, 0.0);
  curve.add(3.0);  // 1 / 2
  EXPECT_NEAR(curve.state.noise * curve.state.noise, 0.5, 1e-15);
  curve.add(NAN);  // between two finite ones, it is as if it were not there
  curve.add(1.0);  // 4 / 2, of weight 2 / 3
  EXPECT_NEAR(curve.state.noise * curve.state.noise, 1.5, 1e-15);
  curve.add(1e200);  // counts as nine variances, of weight 4 / 7
  EXPECT_NEAR(curve.state.noise * curve.state.noise, (3.0 * 1.5 + 4.0 * 13.5) / 7.0, 1e-14);
  Curve huge(3, 0.0, 0.5);
  for (const double loss : {1e200, -1e200, 0.0}) huge.add(loss);
  EXPECT_EQ(huge.state.noise, 0.0);  // squares that overflow are left out
  EXPECT_EQ(huge.state.half_squares.weight, 0.0);
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

void test_load() {
  const float single = 1.5f;
  const double wide = 1.1;
  const BFloat16 bfloat{0x3fc0};
  const Float16 half{0x3e00};
  EXPECT_EQ(load({&single, FloatType::kFloat32}), 1.5);
  EXPECT_EQ(load({&wide, FloatType::kFloat64}), 1.1);
  EXPECT_EQ(load({&bfloat, FloatType::kBFloat16}), 1.5);
  EXPECT_EQ(load({&half, FloatType::kFloat16}), 1.5);
}

// ---- what is made of the curve afterwards ----------------------------------------------------

// Numbers with ties, signs and gaps.
std::vector<double> sample(int64_t count, double gap = NAN) {
  std::vector<double> values(count);
  uint64_t state = 1;
  for (double& value : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<double>(state >> 60) - 5.0;
    if (!std::isnan(gap) && state >> 40 & 1) value = gap;
  }
  return values;
}

// Whatever is known of the point before, a point is the same.
template <class Point>
double same_for_any_guess(const Point& point, int64_t i) {
  const double result = point(i, NAN);
  for (const double guess : {0.0, -3.0, 1e300, -1e300, 0.25, static_cast<double>(INFINITY)}) {
    const double again = point(i, guess);
    EXPECT(again == result || (std::isnan(again) && std::isnan(result)));
  }
  return result;
}

std::vector<double> window_at(const std::vector<double>& values, int64_t window, int64_t i) {
  const int64_t count = static_cast<int64_t>(values.size());
  const int64_t reach = std::min({(window - 1) / 2, i, count - 1 - i});
  return {values.begin() + i - reach, values.begin() + i + reach + 1};
}

void test_moving_average() {
  for (const int64_t count : {1, 2, 3, 10, 40}) {
    const std::vector<double> values = sample(count);
    for (const int64_t window : {1, 2, 3, 4, 5, 17, 35, 99}) {
      const MovingAverage average{values.data(), count, window};
      for (int64_t i = 0; i < count; ++i) {
        const Context context("average of ", window, " at ", i, " of ", count);
        const std::vector<double> seen = window_at(values, window, i);
        double sum = 0.0;
        for (const double value : seen) sum += value;
        EXPECT_EQ(average(i, NAN), sum / static_cast<double>(seen.size()));
      }
    }
  }
}

void test_running_median() {
  for (const double gap : {1.0, static_cast<double>(INFINITY), -static_cast<double>(INFINITY)}) {
    for (const int64_t count : {1, 2, 3, 10, 40}) {
      for (const bool with_nans : {false, true}) {
        std::vector<double> values = sample(count, gap);
        for (int64_t i = 0; with_nans && i < count; i += 3) values[i] = NAN;
        for (const int64_t window : {1, 3, 5, 17, 99}) {
          const RunningMedian median{values.data(), count, window};
          for (int64_t i = 0; i < count; ++i) {
            const Context context("median of ", window, " at ", i, " of ", count);
            std::vector<double> seen = window_at(values, window, i);
            std::erase_if(seen, [](double value) { return std::isnan(value); });
            std::sort(seen.begin(), seen.end());
            const double found = same_for_any_guess(median, i);
            const size_t size = seen.size();
            const double wanted = size == 0 ? NAN : (seen[(size - 1) / 2] + seen[size / 2]) / 2.0;
            EXPECT(found == wanted || (std::isnan(found) && std::isnan(wanted)));
          }
        }
      }
    }
  }
}

// Polynomials up to the order are their own fit, the ends included; the next one is not.
void test_savitzky_golay() {
  for (const int64_t window : {1, 3, 5, 11, 101}) {
    for (int64_t order = 0; order < window && order <= kMaxSavgolOrder; ++order) {
      std::vector<double> table((order + 2) * window);
      fill_savgol_table(table.data(), window, order);
      for (const int64_t count : {window, window + 1, 3 * window}) {
        for (int64_t degree = 0; degree <= order + 1; ++degree) {
          const Context context("degree ", degree, ", order ", order, ", window ", window);
          std::vector<double> values(count);
          for (int64_t i = 0; i < count; ++i) {
            values[i] = std::pow((i - 0.3 * count) / window, degree);
          }
          const SavitzkyGolay fit{values.data(), count, window, order, table.data()};
          double worst = 0.0;
          double largest = 1.0;
          for (int64_t i = 0; i < count; ++i) {
            worst = std::max(worst, std::abs(fit(i, NAN) - values[i]));
            largest = std::max(largest, std::abs(values[i]));
          }
          if (degree <= order) {
            EXPECT(worst < 1e-13 * largest);
          } else if (order + 1 < window) {
            EXPECT(worst > 1e-6 * largest);
          }
        }
        std::vector<double> values(count, 2.0);
        values[count / 2] = INFINITY;
        const SavitzkyGolay fit{values.data(), count, window, order, table.data()};
        EXPECT(std::isnan(fit(count / 2, NAN)));
      }
    }
  }
}

void test_derivative() {
  for (const int64_t count : {2, 3, 10}) {
    std::vector<double> values;
    std::vector<double> x;
    for (int64_t i = 0; i < count; ++i) {
      values.push_back(3.0 * static_cast<double>(i * i));
      x.push_back(static_cast<double>(i) / 2);
    }
    for (const int64_t reach : {1, 2, 99}) {
      const Derivative slope{values.data(), count, x.data(), reach};
      for (int64_t i = 0; i < count; ++i) {
        const Context context("derivative over ", reach, " at ", i, " of ", count);
        const int64_t left = std::max<int64_t>(i - reach, 0);
        const int64_t right = std::min(i + reach, count - 1);
        // Of 12 x^2, between two points: twelve times the sum of the two x.
        EXPECT_EQ(slope(i, NAN), 12.0 * (x[left] + x[right]));
      }
    }
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_record();
  test_skip();
  test_divergence();
  test_units_of_the_rise();
  test_noise();
  test_non_finite();
  test_load();
  test_moving_average();
  test_running_median();
  test_savitzky_golay();
  test_derivative();
  return report("test_curve");
}
