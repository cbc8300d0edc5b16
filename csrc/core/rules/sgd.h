// Stochastic gradient descent with momentum, as torch.optim.SGD defines it.
//
//   g <- sign * g + weight_decay * p
//   b <- g at the tensor's first update, then momentum * b + (1 - dampening) * g
//   p <- p - lr * (nesterov ? g + momentum * b : b)
//
// Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
#pragma once

#include "core/rule.h"

namespace lrfast {

struct Sgd : NoProduct {
  static constexpr const char* kName = "sgd";

  enum Hyper { kRate, kMomentum, kDampening, kWeightDecay, kNesterov, kMaximize, kNumHypers };
  static constexpr HyperName kHypers[kNumHypers] = {{"lr"},           {"momentum"}, {"dampening"},
                                                    {"weight_decay"}, {"nesterov"}, {"maximize"}};

  enum Form : uint8_t { kPlain, kWithMomentum, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {{0, {}},
                                                    {1, {"momentum_buffer"}, {StateKind::kSigned}}};
  static constexpr const char* kCountName = nullptr;  // torch keeps no step count for SGD

  static uint8_t form(const double* hypers, bool cycles_momentum) {
    return hypers[kMomentum] != 0.0 || cycles_momentum ? kWithMomentum : kPlain;
  }

  template <class T>
  struct Scalars {
    T rate, weight_decay, sign;
    T momentum;         // in Nesterov's look-ahead
    T buffer_decay;     // momentum, but 0 at the first update
    T gradient_weight;  // 1 - dampening, but 1 at the first update
    bool nesterov;
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock, Powers&&) {
    const bool first = clock.count == 0.0;
    Scalars<T> s;
    s.rate = static_cast<T>(hypers[kRate]);
    s.weight_decay = static_cast<T>(hypers[kWeightDecay]);
    s.sign = hypers[kMaximize] != 0.0 ? T(-1) : T(1);
    s.momentum = static_cast<T>(hypers[kMomentum]);
    s.buffer_decay = first ? T(0) : s.momentum;
    s.gradient_weight = first ? T(1) : static_cast<T>(1.0 - hypers[kDampening]);
    s.nesterov = hypers[kNesterov] != 0.0;
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static Step<T> step(T param, T& grad, T* states, const Scalars<T>& s) {
    grad = add_penalty(grad, s.sign, param, s.weight_decay);
    T direction = grad;
    if constexpr (form == kWithMomentum) {
      T& buffer = states[0];
      buffer = s.buffer_decay * buffer + s.gradient_weight * grad;
      direction = s.nesterov ? grad + s.momentum * buffer : buffer;
    }
    return {s.rate * direction};
  }
};

}  // namespace lrfast
