// RMSprop, as torch.optim.RMSprop defines it.
//
//   g <- sign * g + weight_decay * p
//   v <- alpha * v + (1 - alpha) * g^2
//   a <- a + (g - a) * (1 - alpha)                (centered)
//   d <- sqrt(v - a^2) + eps,  a = 0 unless centered
//   b <- momentum * b + g / d                     (with momentum)
//   p <- p - lr * b,  or  p - lr * g / d  without
//
// v - a^2 is a variance; where rounding makes it negative, it is taken for zero (torch gets NaN).
//
// Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012. Centered: Graves, "Generating
// Sequences With Recurrent Neural Networks", arXiv:1308.0850.
#pragma once

#include <cmath>

#include "core/rule.h"

namespace lrfast {

struct RmsProp : NoProduct {
  static constexpr const char* kName = "rmsprop";

  enum Hyper { kRate, kMomentum, kAlpha, kEps, kWeightDecay, kCentered, kMaximize, kNumHypers };
  static constexpr HyperName kHypers[kNumHypers] = {
      {"lr"}, {"momentum"}, {"alpha"}, {"eps"}, {"weight_decay"}, {"centered"}, {"maximize"}};

  // The two bits of a form.
  static constexpr uint8_t kWithMomentum = 1;
  static constexpr uint8_t kWithMean = 2;
  enum Form : uint8_t { kNumForms = 4 };
  static constexpr StateNames kStates[kNumForms] = {
      {1, {"square_avg"}, {StateKind::kPositive}},
      {2, {"square_avg", "momentum_buffer"}, {StateKind::kPositive, StateKind::kSigned}},
      {2, {"square_avg", "grad_avg"}, {StateKind::kPositive, StateKind::kSigned}},
      {3,
       {"square_avg", "grad_avg", "momentum_buffer"},
       {StateKind::kPositive, StateKind::kSigned, StateKind::kSigned}}};
  static constexpr const char* kCountName = "step";

  static uint8_t form(const double* hypers, bool cycles_momentum) {
    const bool has_momentum = hypers[kMomentum] > 0.0 || cycles_momentum;
    return (has_momentum ? kWithMomentum : 0) | (hypers[kCentered] != 0.0 ? kWithMean : 0);
  }

  template <class T>
  struct Scalars {
    T rate, sign, weight_decay, momentum;
    T alpha, square_weight;  // square_weight: 1 - alpha
    T eps;
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock&, Powers&&) {
    Scalars<T> s;
    s.rate = static_cast<T>(hypers[kRate]);
    s.sign = hypers[kMaximize] != 0.0 ? T(-1) : T(1);
    s.weight_decay = static_cast<T>(hypers[kWeightDecay]);
    s.momentum = static_cast<T>(hypers[kMomentum]);
    s.alpha = static_cast<T>(hypers[kAlpha]);
    s.square_weight = static_cast<T>(1.0 - hypers[kAlpha]);
    s.eps = static_cast<T>(hypers[kEps]);
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static Step<T> step(T param, T& grad, T* states, const Scalars<T>& s) {
    grad = add_penalty(grad, s.sign, param, s.weight_decay);
    T& square = states[0];
    square = square * s.alpha + grad * grad * s.square_weight;
    T variance = square;
    if constexpr ((form & kWithMean) != 0) {
      T& mean = states[1];
      mean = mean + (grad - mean) * s.square_weight;
      variance = square - mean * mean;
      variance = variance < T(0) ? T(0) : variance;
    }
    T direction = grad / (std::sqrt(variance) + s.eps);
    if constexpr ((form & kWithMomentum) != 0) {
      T& buffer = states[(form & kWithMean) != 0 ? 2 : 1];
      buffer = buffer * s.momentum + direction;
      direction = buffer;
    }
    return {s.rate * direction};
  }

  // See AdamMoments::ratio.
  template <class T>
  LRFAST_HD static T ratio(T grad, const T* states, const Scalars<T>& s) {
    const T root = std::sqrt(states[0]);
    return grad / (root > s.eps ? root : s.eps);
  }
};

// A root, a division and three states: with a block of codes they spill at 64 registers.
template <>
inline constexpr bool kCodesOnCuda<RmsProp> = false;

}  // namespace lrfast
