// Prodigy, as prodigyopt defines it: Adam whose learning rate is an estimate d of the distance from
// the first weights p0 to good ones.
//
//   g <- g + weight_decay * p                      (if not decoupled)
//   r <- d * lr * sqrt(1 - beta2^t) / (1 - beta1^t), without the fraction if not bias-corrected
//   s <- beta3 * s + d / d0 * r * g,  with d for r if safeguarded
//   a <- beta3 * a + sum of d / d0 * r * g * (p0 - p),  b <- sum of |s|
//   h <- d_coef * a / b;  the first one may only raise d, and at once
//   d' <- min(largest h so far, d * growth_rate)
//   m <- beta1 * m + (1 - beta1) * d * g
//   v <- beta2 * v + (1 - beta2) * d^2 * g^2
//   p <- p * (1 - r * weight_decay)                (if decoupled)
//   p <- p - r * m / (sqrt(v) + d' * eps)
//
// The sums are over all groups, and t counts steps of all of them. At a beta1 of 0, d' * g stands
// for m. A learning rate of 0 changes nothing and counts in no sum.
//
// Mishchenko & Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner",
// arXiv:2306.06101.
#pragma once

#include <cmath>

#include "core/rules/estimated_rate.h"

namespace lrfast {

struct Prodigy : EstimatedRate<Prodigy> {
  static constexpr const char* kName = "prodigy";

  enum Hyper {
    kRate,
    kMomentum,
    kBeta2,
    kBeta3,
    kEps,
    kWeightDecay,
    kDecoupled,
    kBiasCorrection,
    kSafeguard,
    kD0,
    kDCoef,
    kGrowthRate,
    kNumHypers
  };
  static constexpr HyperName kHypers[kNumHypers] = {{"lr"},
                                                    {"betas", 0},
                                                    {"betas", 1},
                                                    {"beta3", -1, Unset::kNone},
                                                    {"eps"},
                                                    {"weight_decay"},
                                                    {"decouple"},
                                                    {"use_bias_correction"},
                                                    {"safeguard_warmup"},
                                                    {"d0"},
                                                    {"d_coef"},
                                                    {"growth_rate", -1, Unset::kInfinite}};
  enum Form : uint8_t { kPlain, kWithoutMean, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {{4, {"exp_avg", "exp_avg_sq", "s", "p0"}},
                                                    {3, {"exp_avg_sq", "s", "p0"}}};
  static constexpr int kMeasuredStates = 2;
  static constexpr int kSeen[kNumForms] = {3, 2};

  static uint8_t form(const double* hypers, bool cycles_momentum) {
    return hypers[kMomentum] == 0.0 && !cycles_momentum ? kWithoutMean : kPlain;
  }

  template <class T>
  struct Scalars : MomentScalars<T> {
    T eps;          // times d'
    T step;         // r
    T direct_step;  // r * d', of a gradient
    T beta3, sum_weight;
    T numerator_weight;  // of a sum over elements; 0: they count in no sum
  };

  LRFAST_HD static double beta3(const double* hypers) {
    return hypers[kBeta3] == kNoValue ? std::sqrt(hypers[kBeta2]) : hypers[kBeta3];
  }

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock,
                                      const Distance& distance, Powers&& powers) {
    const double d = distance.used;
    const bool moves = hypers[kRate] > 0.0;
    const double rate = estimated_rate(hypers, clock, distance, powers);
    const double scaled = d / hypers[kD0];
    Scalars<T> s;
    prepare_moments<T>(hypers, distance, rate, d, d * d, s);
    s.eps = static_cast<T>(distance.estimate * hypers[kEps]);
    s.step = static_cast<T>(rate);
    s.direct_step = static_cast<T>(rate * distance.estimate);
    s.beta3 = static_cast<T>(moves ? beta3(hypers) : 1.0);
    s.sum_weight = static_cast<T>(moves ? scaled * (hypers[kSafeguard] != 0.0 ? d : rate) : 0.0);
    s.numerator_weight = static_cast<T>(scaled * rate);
    return s;
  }

  template <class T>
  LRFAST_HD static Terms<T> measure(T param, T grad, T& sum, T first, const Scalars<T>& s) {
    grad = add_penalty(grad, T(1), param, s.penalty);
    sum = sum * s.beta3 + grad * s.sum_weight;
    return {grad * (first - param), std::fabs(sum)};
  }

  // A NaN raises no estimate.
  LRFAST_HD static void estimate(const double* hypers, const Terms<double>& terms,
                                 Distance& distance) {
    distance.denominator = terms.second;
    if (!(terms.second > 0.0)) return;
    distance.numerator = beta3(hypers) * distance.numerator + terms.first;
    const double measured = hypers[kDCoef] * distance.numerator / terms.second;
    double d = distance.estimate;
    if (d == hypers[kD0] && measured > d) d = measured;
    if (measured > distance.largest) distance.largest = measured;
    const double grown = d * hypers[kGrowthRate];
    distance.estimate = grown < distance.largest ? grown : distance.largest;
  }

  template <uint8_t form, class T>
  LRFAST_HD static Step<T> step(T param, T& grad, T* states, const Scalars<T>& s) {
    T* mean = form == kPlain ? states : nullptr;
    T& square = states[form == kPlain ? 1 : 0];
    grad = update_moments<T>(param, grad, mean, square, s);
    const T step = form == kPlain ? s.step * states[0] : grad * s.direct_step;
    return {step, std::sqrt(square) + s.eps};
  }
};

}  // namespace lrfast
