// The part that schedule-free rules share: a running mean x of the iterates z, of which training
// sees y, the point between both at which gradients are taken.
//
//   lr_t <- lr * min(1, t / warmup_steps)
//   w_t <- t^r * (max_{i <= t} lr_i)^weight_lr_power,  c_t <- w_t / sum_{i <= t} w_i
//   y <- y + c_t * (z - y) - lr_t * (1 - beta * (1 - c_t)) * d
//   z <- z - lr_t * d
//
// with the rule's direction d. The parameters hold y; x is y + (1 - 1 / beta) * (z - y), and
// x <- x + c_t * (z - x) follows. The sum of w and the largest lr stand where other rules keep a
// product, because a schedule may change lr at every step.
//
// Defazio et al., "The Road Less Scheduled", arXiv:2405.15682.
#pragma once

#include "core/rule.h"

namespace lrfast {

template <class Rule>
struct ScheduleFree {
  static constexpr const char* kCountName = "step";
  static constexpr const char* kProductName = "weight_sum";
  static constexpr bool kAlwaysProduct = true;
  static constexpr const char* kLargestName = "lr_max";
  static constexpr int kMomentum = -1;  // x is read off y and z by it, so no schedule cycles it

  LRFAST_HD static double warmed_rate(const double* hypers, const TensorClock& clock) {
    const double t = clock.count + 1.0;
    const double steps = hypers[Rule::kWarmupSteps];
    return t < steps ? hypers[Rule::kRate] * (t / steps) : hypers[Rule::kRate];
  }

  LRFAST_HD static double largest_next(const double* hypers, const TensorClock& clock) {
    const double rate = warmed_rate(hypers, clock);
    return rate > clock.largest ? rate : clock.largest;
  }

  LRFAST_HD static double weight(const double* hypers, const TensorClock& clock) {
    return real_power(clock.count + 1.0, hypers[Rule::kR]) *
           real_power(largest_next(hypers, clock), hypers[Rule::kWeightLrPower]);
  }

  LRFAST_HD static double product_next(const double* hypers, const TensorClock& clock) {
    return clock.product + weight(hypers, clock);
  }

  // A lost sum is that of a constant learning rate without warm-up.
  static double product_after(const double* hypers, int64_t count) {
    const double power = hypers[Rule::kR] + 1.0;
    return real_power(hypers[Rule::kRate], hypers[Rule::kWeightLrPower]) *
           real_power(static_cast<double>(count), power) / power;
  }

  template <class T>
  struct MeanScalars {
    T rate, share;  // share: c_t
    T step;         // lr_t * (1 - beta * (1 - c_t))
    T weight_decay;
  };

  template <class T>
  LRFAST_HD static void prepare_mean(const double* hypers, const TensorClock& clock, double beta,
                                     MeanScalars<T>& s) {
    const double own = weight(hypers, clock);
    const double sum = clock.product + own;
    const double share = sum > 0.0 ? own / sum : 0.0;
    const double rate = warmed_rate(hypers, clock);
    s.rate = static_cast<T>(rate);
    s.share = static_cast<T>(share);
    s.step = static_cast<T>(rate * (1.0 - beta * (1.0 - share)));
    s.weight_decay = static_cast<T>(hypers[Rule::kWeightDecay]);
  }

  template <class T>
  LRFAST_HD static void move(T& param, T& z, T direction, const MeanScalars<T>& s) {
    direction = add_penalty(direction, T(1), param, s.weight_decay);
    param = param + s.share * (z - param) - s.step * direction;
    z = z - s.rate * direction;
  }
};

}  // namespace lrfast
