// The loss curve: what happens at each recorded loss, and what can be made of the raw values
// afterwards. One smoother serves the plot and the flag that stops a range test.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtypes.h"
#include "core/platform.h"

namespace lrfast {

enum class LossType : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

LRFAST_HD double load_loss(const void* loss, LossType type) {
  switch (type) {
    case LossType::kFloat32:
      return *static_cast<const float*>(loss);
    case LossType::kFloat64:
      return *static_cast<const double*>(loss);
    case LossType::kBFloat16:
      return to_compute(*static_cast<const BFloat16*>(loss));
    case LossType::kFloat16:
      return to_compute(*static_cast<const Float16*>(loss));
  }
  return NAN;
}

// Exponential moving average with bias correction: value() is the weighted mean of what was added,
// weights falling by beta per step, exact from the first value on (Kingma & Ba, arXiv:1412.6980).
struct Ema {
  double sum;     // of weight * value
  double weight;  // of all weights: 1 - beta^n

  LRFAST_HD void add(double value, double beta) {
    sum = beta * sum + (1.0 - beta) * value;
    weight = beta * weight + (1.0 - beta);
  }
  LRFAST_HD double value() const { return sum / weight; }
};

// Values of CurveState::flag.
constexpr double kRunning = 0.0;
constexpr double kDiverged = 1.0;
constexpr double kNonFinite = 2.0;

// All doubles, so that it is one tensor: torch clones it, numpy looks into it.
struct CurveState {
  double count;  // losses recorded
  Ema ema;
  double best;        // lowest bias-corrected EMA so far
  double best_at;     // index of that loss
  double flag;        // kRunning, kDiverged or kNonFinite; once set it stays
  double flagged_at;  // index of the loss that set it, or -1
  double last;        // last loss recorded
};
constexpr int kCurveStateDoubles = sizeof(CurveState) / sizeof(double);

struct CurveRows {
  CurveState* state;
  double* losses;  // [capacity]
  double* rates;   // [capacity, width]
  int64_t capacity;
  int64_t width;
  double beta;
  double stop;  // the EMA diverges when it exceeds best + (stop - 1) * |best|; 0: never
};

// A loss that is not finite sets the flag and never enters the EMA. Losses past the capacity are
// smoothed and judged, but not kept.
LRFAST_HD void record(const CurveRows& curve, double loss, const double* rates) {
  CurveState& s = *curve.state;
  const int64_t index = static_cast<int64_t>(s.count);
  if (index < curve.capacity) {
    curve.losses[index] = loss;
    for (int64_t g = 0; g < curve.width; ++g) curve.rates[index * curve.width + g] = rates[g];
  }
  s.count += 1.0;
  s.last = loss;
  double flag = kRunning;
  if (!std::isfinite(loss)) {
    flag = kNonFinite;
  } else {
    const bool is_first = s.ema.weight == 0.0;
    s.ema.add(loss, curve.beta);
    const double smoothed = s.ema.value();
    if (is_first || smoothed < s.best) {
      s.best = smoothed;
      s.best_at = static_cast<double>(index);
    }
    if (curve.stop > 0.0 && smoothed > s.best + (curve.stop - 1.0) * std::fabs(s.best)) {
      flag = kDiverged;
    }
  }
  if (s.flag == kRunning && flag != kRunning) {
    s.flag = flag;
    s.flagged_at = static_cast<double>(index);
  }
}

// values: [count] -> out: [count]. Values that are not finite give NaN there and are left out of
// what follows.
LRFAST_HD void smooth_ema(const double* values, double* out, int64_t count, double beta) {
  Ema ema{0.0, 0.0};
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(values[i])) {
      ema.add(values[i], beta);
      out[i] = ema.value();
    } else {
      out[i] = NAN;
    }
  }
}

// Mean over a window centred on i, narrower at both ends so that it stays centred: a lagging window
// would shift the curve along the rate axis.
LRFAST_HD double moving_average(const double* values, int64_t count, int64_t window, int64_t i) {
  int64_t reach = (window - 1) / 2;
  if (reach > i) reach = i;
  if (reach > count - 1 - i) reach = count - 1 - i;
  double sum = 0.0;
  for (int64_t k = i - reach; k <= i + reach; ++k) sum += values[k];
  return sum / static_cast<double>(2 * reach + 1);
}

// Slope of values over x between the two points reach steps to either side of i (one-sided where
// the curve ends).
LRFAST_HD double derivative(const double* values, const double* x, int64_t count, int64_t reach,
                            int64_t i) {
  const int64_t left = i >= reach ? i - reach : 0;
  const int64_t right = i + reach < count ? i + reach : count - 1;
  return (values[right] - values[left]) / (x[right] - x[left]);
}

}  // namespace lrfast
