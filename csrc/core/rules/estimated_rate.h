// The part that rules share whose learning rate is an estimate d of a distance, the same for all
// param groups.
//
//   r <- d * lr * sqrt(1 - beta2^t) / (1 - beta1^t), without the fraction if not bias-corrected
//   g <- g + weight_decay * p,  or  p <- p * (1 - r * weight_decay)  if decoupled
//   m <- beta1 * m + (1 - beta1) * c * g
//   v <- beta2 * v + (1 - beta2) * e * g^2
//
// t counts steps of all groups; the rule's own are c and e. A learning rate of 0 changes nothing.
#pragma once

#include <cmath>

#include "core/rule.h"

namespace lrfast {

template <class Rule>
struct EstimatedRate : Beta1Product<Rule> {
  static constexpr const char* kCountName = "step";

  template <class T>
  struct MomentScalars {
    T penalty;             // the weight decay that is not decoupled
    T shrink;              // 1 - r * weight_decay that is
    T beta1, mean_weight;  // mean_weight: (1 - beta1) * c
    T beta2, square_weight;
  };

  template <class Powers>
  LRFAST_HD static double estimated_rate(const double* hypers, const TensorClock& clock,
                                         const Distance& distance, Powers&& powers) {
    const double rate = distance.used * hypers[Rule::kRate];
    if (hypers[Rule::kBiasCorrection] == 0.0) return rate;
    const int64_t t = static_cast<int64_t>(distance.count) + 1;
    const double power = clock.product >= 0.0 ? Rule::product_next(hypers, clock)
                                              : powers(hypers[Rule::kMomentum], t);
    return rate * (std::sqrt(1.0 - powers(hypers[Rule::kBeta2], t)) / (1.0 - power));
  }

  // rate: r
  template <class T>
  LRFAST_HD static void prepare_moments(const double* hypers, const Distance& distance, double rate,
                                        double mean_scale, double square_scale,
                                        MomentScalars<T>& s) {
    const bool moves = hypers[Rule::kRate] > 0.0;
    const bool decoupled = hypers[Rule::kDecoupled] != 0.0;
    const double decay = hypers[Rule::kWeightDecay];
    const double beta1 = hypers[Rule::kMomentum];
    const double beta2 = hypers[Rule::kBeta2];
    const bool shrinks = decoupled && distance.denominator > 0.0;
    s.penalty = static_cast<T>(decoupled ? 0.0 : decay);
    s.shrink = static_cast<T>(shrinks ? decay_factor(rate, decay) : 1.0);
    s.beta1 = static_cast<T>(moves ? beta1 : 1.0);
    s.mean_weight = static_cast<T>(moves ? mean_scale * (1.0 - beta1) : 0.0);
    s.beta2 = static_cast<T>(moves ? beta2 : 1.0);
    s.square_weight = static_cast<T>(moves ? square_scale * (1.0 - beta2) : 0.0);
  }

  // Brings the moments up to date and returns the gradient as they have seen it. mean: may be null.
  template <class T>
  LRFAST_HD static T update_moments(T param, T grad, T* mean, T& square,
                                    const MomentScalars<T>& s) {
    grad = add_penalty(grad, T(1), param, s.penalty);
    if (mean != nullptr) *mean = *mean * s.beta1 + grad * s.mean_weight;
    square = square * s.beta2 + grad * grad * s.square_weight;
    return grad;
  }
};

}  // namespace lrfast
