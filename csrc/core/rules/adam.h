// Adam, and AdamW where the weight decay is decoupled, as torch.optim.Adam defines both.
//
//   g <- sign * g + weight_decay * p              (Adam)
//   p <- p * (1 - lr * weight_decay)              (AdamW)
//   m <- m + (g - m) * (1 - beta1)
//   v <- beta2 * v + (1 - beta2) * g^2
//   p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//
// With amsgrad the largest v so far stands in the denominator.
//
// Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980.
// Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
// Reddi, Kale & Kumar, "On the Convergence of Adam and Beyond", arXiv:1904.09237 (amsgrad).
#pragma once

#include <cmath>

#include "core/rules/adam_moments.h"

namespace lrfast {

struct Adam : AdamMoments, Beta1Product<Adam> {
  static constexpr const char* kName = "adam";

  static constexpr int kAmsgrad = kOwn, kNumHypers = kOwn + 1;
  static constexpr auto kHypers = hyper_names("amsgrad");

  enum Form : uint8_t { kPlain, kWithAmsgrad, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {
      {2, {"exp_avg", "exp_avg_sq"}, {kMeanKind, kSquareKind}},
      {3, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}, {kMeanKind, kSquareKind, kSquareKind}}};

  static uint8_t form(const double* hypers, bool) {
    return hypers[kAmsgrad] != 0.0 ? kWithAmsgrad : kPlain;
  }

  template <class T>
  struct Scalars : AdamMoments::Scalars<T> {
    T step_size;  // lr / (1 - beta1^t)
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock,
                                      Powers&& powers) {
    const int64_t t = static_cast<int64_t>(clock.count) + 1;
    Scalars<T> s;
    s.step_size = static_cast<T>(unbiased_rate(hypers, clock, powers));
    prepare_moments<T>(hypers, t, powers, s);
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static Step<T> step(T param, T& grad, T* states, const Scalars<T>& s) {
    T& mean = states[0];
    T& square = states[1];
    grad = update_moments<T>(param, grad, mean, square, s);
    T largest = square;
    if constexpr (form == kWithAmsgrad) {
      largest = states[2] > square ? states[2] : square;
      states[2] = largest;
    }
    const T denominator = std::sqrt(largest) * s.root_weight + s.eps;
    return {s.step_size * mean, denominator};
  }
};

}  // namespace lrfast
