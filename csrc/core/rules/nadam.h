// NAdam: Adam with Nesterov's momentum, as torch.optim.NAdam defines it.
//
//   g <- sign * g + weight_decay * p,  or  p <- p * (1 - lr * weight_decay)  where decoupled
//   mu_t <- beta1 * (1 - 0.96^(t * momentum_decay) / 2)
//   m <- m + (g - m) * (1 - beta1)
//   v <- beta2 * v + (1 - beta2) * g^2
//   d <- sqrt(v / (1 - beta2^t)) + eps
//   p <- p - lr * (1 - mu_t) / (1 - prod_{i <= t} mu_i) * g / d
//          - lr * mu_{t+1} / (1 - prod_{i <= t+1} mu_i) * m / d
//
// Dozat, "Incorporating Nesterov Momentum into Adam", 2016.
#pragma once

#include <cmath>

#include "core/rules/adam_moments.h"

namespace lrfast {

struct NAdam : AdamMoments, NoLargest {
  static constexpr const char* kName = "nadam";

  static constexpr int kMomentumDecay = kOwn, kNumHypers = kOwn + 1;
  static constexpr auto kHypers = hyper_names("momentum_decay");

  enum Form : uint8_t { kPlain, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {
      {2, {"exp_avg", "exp_avg_sq"}, {kMeanKind, kSquareKind}}};
  static constexpr const char* kProductName = "mu_product";
  static constexpr bool kAlwaysProduct = true;

  static uint8_t form(const double*, bool) { return kPlain; }

  // mu of the update number t, counted from 1.
  LRFAST_HD static double momentum_at(const double* hypers, double t) {
    constexpr double kLog096 = -0.04082199452025516956;  // ln 0.96
    return hypers[kMomentum] * (1.0 - 0.5 * exponential(kLog096 * t * hypers[kMomentumDecay]));
  }

  LRFAST_HD static double product_next(const double* hypers, const TensorClock& clock) {
    return clock.product * momentum_at(hypers, clock.count + 1.0);
  }

  static double product_after(const double* hypers, int64_t count) {
    TensorClock clock{0.0, 1.0, 0.0};
    for (; clock.count < static_cast<double>(count) && clock.product != 0.0; ++clock.count) {
      clock.product = product_next(hypers, clock);
    }
    return clock.product;
  }

  template <class T>
  struct Scalars : AdamMoments::Scalars<T> {
    T grad_step;  // lr * (1 - mu_t) / (1 - product)
    T mean_step;  // lr * mu_{t+1} / (1 - product * mu_{t+1})
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock,
                                      Powers&& powers) {
    // The exponentials come first: the GPU has few registers to spare for what is made before them.
    const double mu = momentum_at(hypers, clock.count + 1.0);
    const double next_mu = momentum_at(hypers, clock.count + 2.0);
    const double product = clock.product * mu;
    const double rate = hypers[kRate];
    Scalars<T> s;
    s.grad_step = static_cast<T>(rate * (1.0 - mu) / (1.0 - product));
    s.mean_step = static_cast<T>(rate * next_mu / (1.0 - product * next_mu));
    prepare_moments<T>(hypers, static_cast<int64_t>(clock.count) + 1, powers, s);
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static Step<T> step(T param, T& grad, T* states, const Scalars<T>& s) {
    T& mean = states[0];
    T& square = states[1];
    grad = update_moments<T>(param, grad, mean, square, s);
    const T denominator = std::sqrt(square) * s.root_weight + s.eps;
    return {s.grad_step * grad + s.mean_step * mean, denominator};
  }
};

}  // namespace lrfast
