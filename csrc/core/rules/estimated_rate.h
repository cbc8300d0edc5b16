// The part that rules share whose learning rate is an estimate d of a distance, the same for all
// param groups.
//
//   r <- d * lr * sqrt(1 - beta2^t) / (1 - beta1^t), without the fraction if not bias-corrected
//
// t counts steps of all groups.
#pragma once

#include <cmath>

#include "core/rule.h"

namespace lrfast {

template <class Rule>
struct EstimatedRate : Beta1Product<Rule> {
  static constexpr const char* kCountName = "step";

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
};

}  // namespace lrfast
