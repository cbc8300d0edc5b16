// Adam, and AdamW where the weight decay is decoupled, as torch.optim.Adam defines both.
//
//   g <- sign * g + weight_decay * p              (Adam)
//   p <- p * (1 - lr * weight_decay)              (AdamW)
//   m <- m + (g - m) * (1 - beta1)
//   v <- beta2 * v + (1 - beta2) * g^2
//   p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//
// With amsgrad the largest v so far stands in the denominator. When a schedule cycles beta1, the
// product of the betas actually used stands for beta1^t: the power is up to 10.6 % wrong while
// beta1 goes from 0.95 to 0.85 in 50 steps.
//
// Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980.
// Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
// Reddi, Kale & Kumar, "On the Convergence of Adam and Beyond", arXiv:1904.09237 (amsgrad).
#pragma once

#include <cmath>

#include "core/rule.h"

namespace lrfast {

struct Adam {
  static constexpr const char* kName = "adam";

  enum Hyper {
    kRate,
    kMomentum,
    kBeta2,
    kEps,
    kWeightDecay,
    kDecoupled,
    kMaximize,
    kAmsgrad,
    kNumHypers
  };
  static constexpr HyperName kHypers[kNumHypers] = {{"lr"},           {"betas", 0},
                                                    {"betas", 1},     {"eps"},
                                                    {"weight_decay"}, {"decoupled_weight_decay"},
                                                    {"maximize"},     {"amsgrad"}};

  enum Form : uint8_t { kPlain, kWithAmsgrad, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {
      {2, {"exp_avg", "exp_avg_sq"}}, {3, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}}};
  static constexpr const char* kCountName = "step";
  static constexpr const char* kProductName = "beta1_product";  // kept while beta1 is cycled
  static constexpr bool kAlwaysProduct = false;

  static uint8_t form(const double* hypers, bool) {
    return hypers[kAmsgrad] != 0.0 ? kWithAmsgrad : kPlain;
  }

  LRFAST_HD static double product_factor(const double* hypers, double) { return hypers[kMomentum]; }

  template <class T>
  struct Scalars {
    T sign, penalty;  // penalty: the weight decay that is not decoupled
    T shrink;         // 1 - lr * weight_decay that is
    T mean_weight;    // 1 - beta1
    T beta2, square_weight;
    T step_size;    // lr / (1 - beta1^t)
    T root_weight;  // 1 / sqrt(1 - beta2^t)
    T eps;
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock,
                                      Powers&& powers) {
    const double rate = hypers[kRate];
    const bool decoupled = hypers[kDecoupled] != 0.0;
    const int64_t t = static_cast<int64_t>(clock.count) + 1;
    const double beta1_power =
        clock.product >= 0.0 ? clock.product * hypers[kMomentum] : powers(hypers[kMomentum], t);
    Scalars<T> s;
    s.sign = hypers[kMaximize] != 0.0 ? T(-1) : T(1);
    s.penalty = decoupled ? T(0) : static_cast<T>(hypers[kWeightDecay]);
    s.shrink = decoupled ? static_cast<T>(1.0 - rate * hypers[kWeightDecay]) : T(1);
    s.mean_weight = static_cast<T>(1.0 - hypers[kMomentum]);
    s.beta2 = static_cast<T>(hypers[kBeta2]);
    s.square_weight = static_cast<T>(1.0 - hypers[kBeta2]);
    s.step_size = static_cast<T>(rate / (1.0 - beta1_power));
    s.root_weight = static_cast<T>(powers.root_weight(hypers[kBeta2], t));
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
