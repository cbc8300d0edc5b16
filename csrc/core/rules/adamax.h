// Adamax, Adam by the infinity norm, as torch.optim.Adamax defines it.
//
//   g <- sign * g + weight_decay * p
//   m <- m + (g - m) * (1 - beta1)
//   u <- max(beta2 * u, |g| + eps)
//   p <- p - lr / (1 - beta1^t) * m / u
//
// Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, section 7.1.
#pragma once

#include <cmath>

#include "core/rule.h"

namespace lrfast {

struct Adamax : Beta1Product<Adamax> {
  static constexpr const char* kName = "adamax";

  enum Hyper { kRate, kMomentum, kBeta2, kEps, kWeightDecay, kMaximize, kNumHypers };
  static constexpr HyperName kHypers[kNumHypers] = {{"lr"},  {"betas", 0},     {"betas", 1},
                                                    {"eps"}, {"weight_decay"}, {"maximize"}};

  enum Form : uint8_t { kPlain, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {{2, {"exp_avg", "exp_inf"}}};
  static constexpr const char* kCountName = "step";

  static uint8_t form(const double*, bool) { return kPlain; }

  template <class T>
  struct Scalars {
    T step_size;  // lr / (1 - beta1^t)
    T sign, weight_decay;
    T mean_weight;  // 1 - beta1
    T beta2, eps;
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock,
                                      Powers&& powers) {
    Scalars<T> s;
    s.step_size = static_cast<T>(unbiased_rate(hypers, clock, powers));
    s.sign = hypers[kMaximize] != 0.0 ? T(-1) : T(1);
    s.weight_decay = static_cast<T>(hypers[kWeightDecay]);
    s.mean_weight = static_cast<T>(1.0 - hypers[kMomentum]);
    s.beta2 = static_cast<T>(hypers[kBeta2]);
    s.eps = static_cast<T>(hypers[kEps]);
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static Step<T> step(T param, T& grad, T* states, const Scalars<T>& s) {
    grad = add_penalty(grad, s.sign, param, s.weight_decay);
    T& mean = states[0];
    T& largest = states[1];
    mean = mean + (grad - mean) * s.mean_weight;
    largest = larger(largest * s.beta2, std::abs(grad) + s.eps);
    return {s.step_size * mean, largest};
  }

 private:
  // NaN if either is, as torch.maximum.
  template <class T>
  LRFAST_HD static T larger(T a, T b) {
    return b > a || b != b ? b : a;
  }
};

}  // namespace lrfast
