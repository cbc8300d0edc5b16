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

#include "core/rule.h"

namespace lrfast {

struct NAdam {
  static constexpr const char* kName = "nadam";

  enum Hyper {
    kRate,
    kMomentum,
    kBeta2,
    kEps,
    kWeightDecay,
    kDecoupled,
    kMaximize,
    kMomentumDecay,
    kNumHypers
  };
  static constexpr HyperName kHypers[kNumHypers] = {{"lr"},           {"betas", 0},
                                                    {"betas", 1},     {"eps"},
                                                    {"weight_decay"}, {"decoupled_weight_decay"},
                                                    {"maximize"},     {"momentum_decay"}};

  enum Form : uint8_t { kPlain, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {{2, {"exp_avg", "exp_avg_sq"}}};
  static constexpr const char* kCountName = "step";
  static constexpr const char* kProductName = "mu_product";
  static constexpr bool kAlwaysProduct = true;

  static uint8_t form(const double*, bool) { return kPlain; }

  // mu of the update number t, counted from 1.
  LRFAST_HD static double momentum_at(const double* hypers, double t) {
    constexpr double kLog096 = -0.04082199452025516956;  // ln 0.96
    return hypers[kMomentum] * (1.0 - 0.5 * exponential(kLog096 * t * hypers[kMomentumDecay]));
  }

  LRFAST_HD static double product_factor(const double* hypers, double count) {
    return momentum_at(hypers, count + 1.0);
  }

  template <class T>
  struct Scalars {
    T sign, penalty;  // penalty: the weight decay that is not decoupled
    T shrink;         // 1 - lr * weight_decay that is
    T mean_weight;    // 1 - beta1
    T beta2, square_weight;
    T grad_step;    // lr * (1 - mu_t) / (1 - product)
    T mean_step;    // lr * mu_{t+1} / (1 - product * mu_{t+1})
    T root_weight;  // 1 / sqrt(1 - beta2^t)
    T eps;
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock,
                                      Powers&& powers) {
    // The exponentials come first: the GPU has few registers to spare for what is made before them.
    const double mu = momentum_at(hypers, clock.count + 1.0);
    const double next_mu = momentum_at(hypers, clock.count + 2.0);
    const double product = clock.product * mu;
    const double rate = hypers[kRate];
    const int64_t t = static_cast<int64_t>(clock.count) + 1;
    const bool decoupled = hypers[kDecoupled] != 0.0;
    Scalars<T> s;
    s.grad_step = static_cast<T>(rate * (1.0 - mu) / (1.0 - product));
    s.mean_step = static_cast<T>(rate * next_mu / (1.0 - product * next_mu));
    s.root_weight = static_cast<T>(powers.root_weight(hypers[kBeta2], t));
    s.sign = hypers[kMaximize] != 0.0 ? T(-1) : T(1);
    s.penalty = decoupled ? T(0) : static_cast<T>(hypers[kWeightDecay]);
    s.shrink = decoupled ? static_cast<T>(1.0 - rate * hypers[kWeightDecay]) : T(1);
    s.mean_weight = static_cast<T>(1.0 - hypers[kMomentum]);
    s.beta2 = static_cast<T>(hypers[kBeta2]);
    s.square_weight = static_cast<T>(1.0 - hypers[kBeta2]);
    s.eps = static_cast<T>(hypers[kEps]);
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static void apply(T& param, T grad, T* states, const Scalars<T>& s) {
    grad = add_penalty(grad, s.sign, param, s.penalty);
    T& mean = states[0];
    T& square = states[1];
    mean = mean + (grad - mean) * s.mean_weight;
    square = square * s.beta2 + grad * grad * s.square_weight;
    const T denominator = std::sqrt(square) * s.root_weight + s.eps;
    param = param * s.shrink - (s.grad_step * grad + s.mean_step * mean) / denominator;
  }
};

}  // namespace lrfast
