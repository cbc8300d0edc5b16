// The loss curve: what happens at each recorded loss, and what can be made of the raw values
// afterwards. One smoother serves the plot and the flag that stops a range test.
#pragma once

#include <cmath>
#include <cstdint>
#include <variant>

#include "core/dtypes.h"
#include "core/platform.h"

namespace lrfast {

enum class FloatType : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// One number on the device.
struct Scalar {
  const void* address;
  FloatType type;
};

LRFAST_HD double load(const Scalar& scalar) {
  switch (scalar.type) {
    case FloatType::kFloat32:
      return *static_cast<const float*>(scalar.address);
    case FloatType::kFloat64:
      return *static_cast<const double*>(scalar.address);
    case FloatType::kBFloat16:
      return to_compute(*static_cast<const BFloat16*>(scalar.address));
    case FloatType::kFloat16:
      return to_compute(*static_cast<const Float16*>(scalar.address));
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
  double count;        // losses recorded, at most the capacity
  Ema ema;             // of the finite ones
  double first;        // first value of the EMA: the first finite loss, up to rounding
  double best;         // lowest bias-corrected EMA so far
  double best_at;      // index of that loss
  double flag;         // kRunning, kDiverged or kNonFinite; once set it stays
  double flagged_at;   // index of the loss that set it, or -1
  double last;         // last loss recorded
  double last_finite;  // last of those that are finite
  Ema half_squares;    // of (loss - finite loss before)^2 / 2: of independent losses, a variance
  double noise;        // its root: standard deviation of one loss; 0 before two
};
constexpr int kCurveStateDoubles = sizeof(CurveState) / sizeof(double);

struct CurveRows {
  CurveState* state;
  double* losses;  // [capacity]
  double* rates;   // [capacity, width]; planned before the run, or recorded with the losses
  int64_t capacity;
  int64_t width;
  double beta;
  double stop;    // see has_diverged; 0: never
  int64_t grace;  // losses at the start that are followed, but not judged
};

// Whether the EMA has risen too far above its best. The rise is measured in the largest of
//   best       which alone makes this the usual "smoothed > stop * best" of positive losses;
//   drop / 10  a tenth of how far the EMA has fallen: a loss near zero or below it has no ratio to
//              its best, and a loss that is shifted down must stop about where it did;
//   noise      so that the scatter of single losses is no divergence.
// A best of 0 or less is judged from the eleventh loss on, as its verdict hangs on the noise, which
// a few losses do not tell: of runs of pure noise, one in ten would stop at once. And where all
// losses were equal up to rounding, one that differs has nothing to be measured in: a loss that was
// always 0 may rise once, and is judged from then on by the noise that this makes.
LRFAST_HD bool has_diverged(const CurveState& s, double smoothed, double stop) {
  constexpr double kLossesThatTellNoise = 10.0;
  constexpr double kRounding = 1e-12;  // relative, and far above that of an EMA of equal losses
  if (s.best <= 0.0 && s.count < kLossesThatTellNoise) return false;
  const double drop = s.first - s.best;
  const double unit = std::fmax(s.best, std::fmax(drop / 10.0, s.noise));
  return unit > kRounding * std::fabs(s.best) && smoothed - s.best > (stop - 1.0) * unit;
}

// One more step between finite losses, for the noise. It counts as three standard deviations at
// most: as it is, a loss that explodes would raise its own limit as fast as its average rises, and
// from a growth of 1.4 per step on never be found out.
LRFAST_HD void estimate_noise(CurveState& s, double step, double beta) {
  const double most = 9.0 * s.noise * s.noise;
  double half_square = step * step / 2.0;
  if (s.noise > 0.0 && !(half_square < most)) half_square = most;
  if (!std::isfinite(half_square)) return;
  s.half_squares.add(half_square, beta);
  s.noise = std::sqrt(s.half_squares.value());
}

// What a finite loss does to all but count and flag. Returns whether the curve diverges with it.
LRFAST_HD bool follow(CurveState& s, double loss, double beta, double stop) {
  const bool is_first = s.ema.weight == 0.0;
  s.ema.add(loss, beta);
  const double smoothed = s.ema.value();
  if (is_first) s.first = smoothed;
  if (is_first || smoothed < s.best) {
    s.best = smoothed;
    s.best_at = s.count;
  }
  // By the noise of the losses before: a jump must not raise the limit that it is held against.
  const bool diverged = stop > 0.0 && has_diverged(s, smoothed, stop);
  if (!is_first) estimate_noise(s, loss - s.last_finite, beta);
  s.last_finite = loss;
  return diverged;
}

// A loss that is not finite sets the flag and enters no average. A finite one of a skipped step,
// and any loss past the capacity, change nothing. Returns the loss's place, or kNowhere.
constexpr int64_t kNowhere = -1;
LRFAST_HD int64_t record_loss(const CurveRows& curve, double loss, bool skipped) {
  CurveState& s = *curve.state;
  const bool is_finite = std::isfinite(loss);
  const int64_t index = static_cast<int64_t>(s.count);
  if (index >= curve.capacity || (skipped && is_finite)) return kNowhere;
  curve.losses[index] = loss;
  double flag = kRunning;
  if (!is_finite) {
    flag = kNonFinite;
  } else if (follow(s, loss, curve.beta, curve.stop) && index >= curve.grace) {
    flag = kDiverged;
  }
  if (s.flag == kRunning && flag != kRunning) {
    s.flag = flag;
    s.flagged_at = s.count;
  }
  s.last = loss;
  s.count += 1.0;
  return index;
}

// skip: a GradScaler's found_inf; its address may be null.
LRFAST_HD int64_t record_loss(const CurveRows& curve, const Scalar& loss, const Scalar& skip) {
  return record_loss(curve, load(loss), skip.address != nullptr && load(skip) != 0.0);
}

// The rates beside the loss of that place, from first on in strides. rates: [width], or null to
// leave the row as planned.
LRFAST_HD void copy_rates(const CurveRows& curve, int64_t place, const double* rates, int64_t first,
                          int64_t stride) {
  if (place == kNowhere || rates == nullptr) return;
  double* const row = curve.rates + place * curve.width;
  for (int64_t g = first; g < curve.width; g += stride) row[g] = rates[g];
}

LRFAST_HD void record(const CurveRows& curve, const Scalar& loss, const double* rates,
                      const Scalar& skip) {
  copy_rates(curve, record_loss(curve, loss, skip), rates, 0, 1);
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

// ---- what is made of the raw values, point by point --------------------------------------------
//
// Each of these structs gives out[i] for values[count]. `before` is out[i - 1] where it is known,
// or NaN: the result does not depend on it, but may be found sooner.

// Windows are centred on i, and narrower at both ends so that they stay centred: a lagging window
// would shift the curve along the rate axis.
LRFAST_HD int64_t reach_at(int64_t count, int64_t window, int64_t i) {
  const int64_t room = i < count - 1 - i ? i : count - 1 - i;
  const int64_t reach = (window - 1) / 2;
  return reach < room ? reach : room;
}

// The sum of term(k) for k in [0, count), as several sums that need not wait for each other.
template <class Term>
LRFAST_HD double sum_of(int64_t count, const Term& term) {
  constexpr int kSums = 8;
  double sums[kSums] = {};
  int64_t k = 0;
  for (; k + kSums <= count; k += kSums) {
    LRFAST_UNROLL
    for (int s = 0; s < kSums; ++s) sums[s] += term(k + s);
  }
  double sum = 0.0;
  LRFAST_UNROLL
  for (int s = 0; s < kSums; ++s) sum += sums[s];
  for (; k < count; ++k) sum += term(k);
  return sum;
}

// Mean over the window.
struct MovingAverage {
  const double* values;
  int64_t count;
  int64_t window;

  LRFAST_HD double operator()(int64_t i, double) const {
    const int64_t reach = reach_at(count, window, i);
    const double* const first = values + (i - reach);
    const int64_t size = 2 * reach + 1;
    return sum_of(size, [first](int64_t k) { return first[k]; }) / static_cast<double>(size);
  }
};

// Median over those in the window that are not NaN. The struct selects without moving or storing
// values, so that any thread may take any point.
struct RunningMedian {
  const double* values;
  int64_t count;
  int64_t window;

  LRFAST_HD double operator()(int64_t i, double before) const {
    const int64_t reach = reach_at(count, window, i);
    const double* const first = values + (i - reach);
    const int64_t size = 2 * reach + 1;
    const int64_t numbers = count_of(size, [first](int64_t k) { return first[k] == first[k]; });
    if (numbers == 0) return NAN;
    const double guess = std::isnan(before) ? values[i] : before;
    const double lower = ranked(first, size, (numbers - 1) / 2, guess);
    if (numbers % 2 == 1) return lower;
    return (lower + ranked(first, size, numbers / 2, lower)) / 2.0;
  }

 private:
  template <class Condition>
  static LRFAST_HD int64_t count_of(int64_t size, const Condition& is_met) {
    return static_cast<int64_t>(sum_of(size, [&](int64_t k) { return is_met(k) ? 1.0 : 0.0; }));
  }

  // The number of that rank, from 0, in window[size], by comparing with pivots. A first pivot of
  // any value will do; but from one point to the next a median moves by one rank at most, so that
  // the median before leads to it in one pass.
  static LRFAST_HD double ranked(const double* window, int64_t size, int64_t rank, double pivot) {
    double low = NAN;  // what is sought lies between these two, which it does not equal; NaN: none
    double high = NAN;
    if (std::isnan(pivot)) pivot = 0.0;
    for (;;) {
      const int64_t below = count_of(size, [&](int64_t k) { return window[k] < pivot; });
      const int64_t through = count_of(size, [&](int64_t k) { return window[k] <= pivot; });
      if (rank == through) return least_above(window, size, pivot, 1.0);
      if (rank == below - 1) return -least_above(window, size, -pivot, -1.0);
      if (below <= rank && rank < through) return pivot;
      (rank < below ? high : low) = pivot;
      pivot = middle_between(window, size, low, high);
    }
  }

  // The least of sign * window[k] that is above the bound, in several lanes for sum_of's reason.
  static LRFAST_HD double least_above(const double* window, int64_t size, double bound,
                                      double sign) {
    constexpr int kLanes = 4;
    double least[kLanes] = {INFINITY, INFINITY, INFINITY, INFINITY};
    const auto take = [&](int lane, int64_t k) {
      const double value = sign * window[k];
      const double candidate = value > bound ? value : INFINITY;
      least[lane] = candidate < least[lane] ? candidate : least[lane];
    };
    int64_t k = 0;
    for (; k + kLanes <= size; k += kLanes) {
      LRFAST_UNROLL
      for (int lane = 0; lane < kLanes; ++lane) take(lane, k + lane);
    }
    for (; k < size; ++k) take(0, k);
    return std::fmin(std::fmin(least[0], least[1]), std::fmin(least[2], least[3]));
  }

  // Of those between low and high, the one that stands in the middle: of sorted ones the median.
  static LRFAST_HD double middle_between(const double* window, int64_t size, double low,
                                         double high) {
    const auto is_between = [&](int64_t k) {
      return window[k] == window[k] && !(window[k] <= low) && !(window[k] >= high);
    };
    int64_t rest = count_of(size, is_between) / 2;
    int64_t k = 0;
    while (!(is_between(k) && rest-- == 0)) ++k;
    return window[k];
  }
};

// Savitzky & Golay, "Smoothing and Differentiation of Data by Simplified Least Squares Procedures",
// 1964: the value at i of the polynomial that fits the window best. Windows keep their width: at
// the ends, the polynomial of the first or last one is evaluated off its centre.
constexpr int kMaxSavgolOrder = 5;

// Fills table: [order + 2, window]. First the weights of the window's values at its centre; then
// the discrete Legendre (Gram) polynomials of degree 0 to order, orthonormal over the window, by
// their three-term recurrence. Window: odd, above order, which is at most kMaxSavgolOrder.
inline void fill_savgol_table(double* table, int64_t window, int64_t order) {
  const int64_t half = window / 2;
  const double size = static_cast<double>(window);
  double* const weights = table;
  double* const basis = table + window;
  const auto coupling = [size](double degree) {
    const double square = degree * degree;
    return std::sqrt(square * (size * size - square) / (4.0 * (4.0 * square - 1.0)));
  };
  for (int64_t k = 0; k < window; ++k) {
    const double x = static_cast<double>(k - half);
    double last = 0.0;
    double now = 1.0 / std::sqrt(size);
    for (int64_t degree = 0; degree <= order; ++degree) {
      basis[degree * window + k] = now;
      const double next = degree + 1.0;
      const double after = (x * now - coupling(next - 1.0) * last) / coupling(next);
      last = now;
      now = after;
    }
  }
  for (int64_t k = 0; k < window; ++k) {
    weights[k] = 0.0;
    for (int64_t degree = 0; degree <= order; ++degree) {
      const double* const polynomial = basis + degree * window;
      weights[k] += polynomial[half] * polynomial[k];
    }
  }
}

// A window that holds a value that is not finite gives NaN.
struct SavitzkyGolay {
  const double* values;
  int64_t count;  // at least the window
  int64_t window;
  int64_t order;
  const double* table;  // fill_savgol_table

  LRFAST_HD double operator()(int64_t i, double) const {
    const int64_t last_first = count - window;
    int64_t first = i - window / 2;
    const bool is_centred = first >= 0 && first <= last_first;
    if (first < 0) first = 0;
    if (first > last_first) first = last_first;
    const double* const fitted = values + first;
    double sum = 0.0;
    if (is_centred) {
      sum = dot(table, fitted);
    } else {
      for (int64_t degree = 0; degree <= order; ++degree) {
        const double* const polynomial = table + (degree + 1) * window;
        sum += polynomial[i - first] * dot(polynomial, fitted);
      }
    }
    return std::isfinite(sum) ? sum : NAN;
  }

 private:
  LRFAST_HD double dot(const double* a, const double* b) const {
    return sum_of(window, [a, b](int64_t k) { return a[k] * b[k]; });
  }
};

// Slope of values over x between the two points reach steps to either side of i (one-sided where
// the curve ends).
struct Derivative {
  const double* values;
  int64_t count;
  const double* x;
  int64_t reach;

  LRFAST_HD double operator()(int64_t i, double) const {
    const int64_t left = i >= reach ? i - reach : 0;
    const int64_t right = i + reach < count ? i + reach : count - 1;
    return (values[right] - values[left]) / (x[right] - x[left]);
  }
};

using Points = std::variant<MovingAverage, RunningMedian, SavitzkyGolay, Derivative>;

}  // namespace lrfast
