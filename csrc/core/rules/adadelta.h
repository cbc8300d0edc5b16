// Adadelta, as torch.optim.Adadelta defines it.
//
//   g <- sign * g + weight_decay * p
//   v <- rho * v + (1 - rho) * g^2
//   d <- sqrt((u + eps) / (v + eps)) * g
//   u <- rho * u + (1 - rho) * d^2
//   p <- p - lr * d
//
// Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, which has no lr.
#pragma once

#include <cmath>

#include "core/rule.h"

namespace lrfast {

struct Adadelta : NoProduct {
  static constexpr const char* kName = "adadelta";

  static constexpr int kMomentum = -1;  // it has none to cycle
  enum Hyper { kRate, kRho, kEps, kWeightDecay, kMaximize, kNumHypers };
  static constexpr HyperName kHypers[kNumHypers] = {
      {"lr"}, {"rho"}, {"eps"}, {"weight_decay"}, {"maximize"}};

  enum Form : uint8_t { kPlain, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {{2, {"square_avg", "acc_delta"}}};
  static constexpr const char* kCountName = "step";

  static uint8_t form(const double*, bool) { return kPlain; }

  template <class T>
  struct Scalars {
    T rate, sign, weight_decay;
    T rho, square_weight;  // square_weight: 1 - rho
    T eps;
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock&, Powers&&) {
    Scalars<T> s;
    s.rate = static_cast<T>(hypers[kRate]);
    s.sign = hypers[kMaximize] != 0.0 ? T(-1) : T(1);
    s.weight_decay = static_cast<T>(hypers[kWeightDecay]);
    s.rho = static_cast<T>(hypers[kRho]);
    s.square_weight = static_cast<T>(1.0 - hypers[kRho]);
    s.eps = static_cast<T>(hypers[kEps]);
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static Step<T> step(T param, T& grad, T* states, const Scalars<T>& s) {
    grad = add_penalty(grad, s.sign, param, s.weight_decay);
    T& square = states[0];
    T& moved = states[1];
    square = square * s.rho + grad * grad * s.square_weight;
    // One root instead of torch's two: it leaves a GPU the time to round at random, too.
    const T delta = std::sqrt((moved + s.eps) / (square + s.eps)) * grad;
    moved = moved * s.rho + delta * delta * s.square_weight;
    return {s.rate * delta};
  }
};

}  // namespace lrfast
