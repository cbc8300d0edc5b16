// Lion: the sign of an interpolation between momentum and gradient, with decoupled weight decay.
//
//   g <- sign * g
//   u <- sign of (beta1 * m + (1 - beta1) * g), 0 for 0
//   p <- p * (1 - lr * weight_decay) - lr * u
//   m <- beta2 * m + (1 - beta2) * g
//
// The step interpolates with beta1, the momentum afterwards with beta2, both from the momentum of
// before: a port that updates m first, or decays with the wrong beta, still trains.
//
// Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675.
#pragma once

#include "core/rule.h"

namespace lrfast {

struct Lion : NoProduct {
  static constexpr const char* kName = "lion";

  enum Hyper { kRate, kMomentum, kBeta2, kWeightDecay, kMaximize, kNumHypers };
  static constexpr HyperName kHypers[kNumHypers] = {
      {"lr"}, {"betas", 0}, {"betas", 1}, {"weight_decay"}, {"maximize"}};

  enum Form : uint8_t { kPlain, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {{1, {"exp_avg"}, {StateKind::kSigned}}};
  static constexpr const char* kCountName = nullptr;  // no bias to correct

  static uint8_t form(const double*, bool) { return kPlain; }

  template <class T>
  struct Scalars {
    T rate, shrink, sign;  // shrink: 1 - lr * weight_decay
    T beta1, step_weight;  // step_weight: 1 - beta1
    T beta2, mean_weight;  // mean_weight: 1 - beta2
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock&, Powers&&) {
    Scalars<T> s;
    s.rate = static_cast<T>(hypers[kRate]);
    s.shrink = static_cast<T>(decay_factor(hypers[kDecayRate], hypers[kWeightDecay]));
    s.sign = hypers[kMaximize] != 0.0 ? T(-1) : T(1);
    s.beta1 = static_cast<T>(hypers[kMomentum]);
    s.beta2 = static_cast<T>(hypers[kBeta2]);
    s.step_weight = static_cast<T>(1.0 - hypers[kMomentum]);
    s.mean_weight = static_cast<T>(1.0 - hypers[kBeta2]);
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static Step<T> step(T, T& grad, T* states, const Scalars<T>& s) {
    grad = s.sign * grad;
    T& mean = states[0];
    const T step = mean * s.beta1 + grad * s.step_weight;
    const T direction = step > T(0) ? T(1) : step < T(0) ? T(-1) : step;  // NaN stays NaN
    mean = mean * s.beta2 + grad * s.mean_weight;
    return {s.rate * direction};
  }
};

}  // namespace lrfast
