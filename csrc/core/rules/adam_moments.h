// The part that Adam, NAdam and RAdam share: hyperparameters, and the two moments of the gradient.
//
//   g <- sign * g + weight_decay * p,  or  p <- p * (1 - lr * weight_decay)  if decoupled
//   m <- m + (g - m) * (1 - beta1)
//   v <- beta2 * v + (1 - beta2) * g^2
#pragma once

#include <array>

#include "core/rule.h"

namespace lrfast {

struct AdamMoments {
  enum Hyper {
    kRate,
    kMomentum,
    kBeta2,
    kEps,
    kWeightDecay,
    kDecoupled,
    kMaximize,
    kOwn  // the first in which the rules differ
  };
  template <class... Own>
  static constexpr std::array<HyperName, kOwn + sizeof...(Own)> hyper_names(Own... own) {
    return {{{"lr"},
             {"betas", 0},
             {"betas", 1},
             {"eps"},
             {"weight_decay"},
             {"decoupled_weight_decay"},
             {"maximize"},
             {own}...}};
  }
  static constexpr const char* kCountName = "step";
  static constexpr StateKind kMeanKind = StateKind::kSigned;
  static constexpr StateKind kSquareKind = StateKind::kPositive;

  template <class T>
  struct Scalars {
    T sign, penalty;  // penalty: the weight decay that is not decoupled
    T shrink;         // 1 - lr * weight_decay that is
    T mean_weight;    // 1 - beta1
    T beta2, square_weight;
    T root_weight;  // 1 / sqrt(1 - beta2^t)
    T eps;
  };

  // t: number of the update, counted from 1.
  template <class T, class Powers>
  LRFAST_HD static void prepare_moments(const double* hypers, int64_t t, Powers&& powers,
                                        Scalars<T>& s) {
    const bool decoupled = hypers[kDecoupled] != 0.0;
    s.root_weight = static_cast<T>(powers.root_weight(hypers[kBeta2], t));
    s.sign = hypers[kMaximize] != 0.0 ? T(-1) : T(1);
    s.penalty = decoupled ? T(0) : static_cast<T>(hypers[kWeightDecay]);
    s.shrink = T(1);
    if (decoupled)
      s.shrink = static_cast<T>(decay_factor(hypers[kDecayRate], hypers[kWeightDecay]));
    s.mean_weight = static_cast<T>(1.0 - hypers[kMomentum]);
    s.beta2 = static_cast<T>(hypers[kBeta2]);
    s.square_weight = static_cast<T>(1.0 - hypers[kBeta2]);
    s.eps = static_cast<T>(hypers[kEps]);
  }

  // Brings the moments up to date and returns the gradient as they have seen it.
  template <class T>
  LRFAST_HD static T update_moments(T param, T grad, T& mean, T& square, const Scalars<T>& s) {
    grad = add_penalty(grad, s.sign, param, s.penalty);
    mean = mean + (grad - mean) * s.mean_weight;
    square = square * s.beta2 + grad * grad * s.square_weight;
    return grad;
  }

  // The gradient by the root of its mean of squares, which is 1 where gradients are as they were:
  // update clipping goes by it.
  template <class T>
  LRFAST_HD static T ratio(T grad, const T* states, const Scalars<T>& s) {
    const T root = std::sqrt(states[1]) * s.root_weight;
    return grad / (root > s.eps ? root : s.eps);
  }
};

}  // namespace lrfast
