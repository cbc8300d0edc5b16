// AdamW: Adam with decoupled weight decay, as torch.optim.AdamW defines it.
//
//   p <- p * (1 - lr * weight_decay)
//   m <- m + (g - m) * (1 - beta1)
//   v <- beta2 * v + (1 - beta2) * g^2
//   p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//
// With amsgrad the largest v so far stands in the denominator. When a schedule cycles beta1, the
// product of the betas actually used stands for beta1^t: the power is up to 10.6 % wrong while
// beta1 goes from 0.95 to 0.85 in 50 steps.
//
// Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
#pragma once

#include <cmath>

#include "core/math.h"
#include "core/rule.h"

namespace lrfast {

struct AdamW {
  static constexpr const char* kName = "adamw";

  enum Hyper { kRate, kMomentum, kBeta2, kEps, kWeightDecay, kMaximize, kAmsgrad, kNumHypers };
  static constexpr HyperName kHypers[kNumHypers] = {
      {"lr"}, {"betas", 0}, {"betas", 1}, {"eps"}, {"weight_decay"}, {"maximize"}, {"amsgrad"}};

  enum Form : uint8_t { kPlain, kWithAmsgrad, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {
      {2, {"exp_avg", "exp_avg_sq"}}, {3, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}}};
  static constexpr const char* kCountName = "step";
  static constexpr const char* kProductName = "beta1_product";  // kept while beta1 is cycled

  static uint8_t form(const double* hypers, bool) {
    return hypers[kAmsgrad] != 0.0 ? kWithAmsgrad : kPlain;
  }

  template <class T>
  struct Scalars {
    T sign, shrink;  // shrink: 1 - lr * weight_decay
    T mean_weight;   // 1 - beta1
    T beta2, square_weight;
    T step_size;    // lr / (1 - beta1^t)
    T root_weight;  // 1 / sqrt(1 - beta2^t)
    T eps;
  };

  template <class T>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock) {
    const double rate = hypers[kRate];
    const int64_t t = static_cast<int64_t>(clock.count) + 1;
    const double beta1_power = clock.momentum_product >= 0.0
                                   ? clock.momentum_product * hypers[kMomentum]
                                   : integer_power(hypers[kMomentum], t);
    const double beta2_power = integer_power(hypers[kBeta2], t);
    Scalars<T> s;
    s.sign = hypers[kMaximize] != 0.0 ? T(-1) : T(1);
    s.shrink = static_cast<T>(1.0 - rate * hypers[kWeightDecay]);
    s.mean_weight = static_cast<T>(1.0 - hypers[kMomentum]);
    s.beta2 = static_cast<T>(hypers[kBeta2]);
    s.square_weight = static_cast<T>(1.0 - hypers[kBeta2]);
    s.step_size = static_cast<T>(rate / (1.0 - beta1_power));
    s.root_weight = static_cast<T>(1.0 / std::sqrt(1.0 - beta2_power));
    s.eps = static_cast<T>(hypers[kEps]);
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static void apply(T& param, T grad, T* states, const Scalars<T>& s) {
    grad = s.sign * grad;
    T& mean = states[0];
    T& square = states[1];
    mean = mean + (grad - mean) * s.mean_weight;
    square = square * s.beta2 + grad * grad * s.square_weight;
    T largest = square;
    if constexpr (form == kWithAmsgrad) {
      largest = states[2] > square ? states[2] : square;
      states[2] = largest;
    }
    const T denominator = std::sqrt(largest) * s.root_weight + s.eps;
    param = param * s.shrink - s.step_size * mean / denominator;
  }
};

}  // namespace lrfast
