// Adagrad, as torch.optim.Adagrad defines it.
//
//   g <- sign * g + weight_decay * p
//   s <- s + g^2
//   p <- p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)
//
// Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
// Optimization", 2011.
#pragma once

#include <cmath>

#include "core/rule.h"

namespace lrfast {

struct Adagrad : NoProduct {
  static constexpr const char* kName = "adagrad";

  static constexpr int kMomentum = -1;  // it has none to cycle
  enum Hyper { kRate, kRateDecay, kWeightDecay, kEps, kMaximize, kNumHypers };
  static constexpr HyperName kHypers[kNumHypers] = {
      {"lr"}, {"lr_decay"}, {"weight_decay"}, {"eps"}, {"maximize"}};

  enum Form : uint8_t { kPlain, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {{1, {"sum"}}};
  static constexpr const char* kCountName = "step";

  static uint8_t form(const double*, bool) { return kPlain; }

  template <class T>
  struct Scalars {
    T step_size;  // lr / (1 + (t - 1) * lr_decay)
    T sign, weight_decay, eps;
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock, Powers&&) {
    Scalars<T> s;
    s.step_size = static_cast<T>(hypers[kRate] / (1.0 + clock.count * hypers[kRateDecay]));
    s.sign = hypers[kMaximize] != 0.0 ? T(-1) : T(1);
    s.weight_decay = static_cast<T>(hypers[kWeightDecay]);
    s.eps = static_cast<T>(hypers[kEps]);
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static Step<T> step(T param, T& grad, T* states, const Scalars<T>& s) {
    grad = add_penalty(grad, s.sign, param, s.weight_decay);
    T& sum = states[0];
    sum = sum + grad * grad;
    return {s.step_size * grad, std::sqrt(sum) + s.eps};
  }
};

}  // namespace lrfast
