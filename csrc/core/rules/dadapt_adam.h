// Adam by D-Adaptation, as dadaptation.DAdaptAdam defines it: its learning rate is an estimate d of
// the distance from the first weights to good ones.
//
//   g <- g + weight_decay * p                      (if not decoupled)
//   a <- w * a + (1 - w) * sum of scale * r * g * s / (sqrt(v) + eps),  w = sqrt(beta2)
//   s <- w * s + (1 - w) * r * g,  b <- sum of scale * |s|
//   d' <- max(d, min(a / ((1 - w) * b), d * growth_rate))
//   m <- beta1 * m + (1 - beta1) * scale * r * g
//   v <- beta2 * v + (1 - beta2) * g^2
//   p <- p * (1 - r * weight_decay)                (if decoupled)
//   p <- p - m / (sqrt(v) + eps)
//
// with r of estimated_rate.h and the group's scale. The sums are over all groups. A learning rate
// of 0 changes nothing and counts in no sum.
//
// Defazio & Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", arXiv:2301.07733.
#pragma once

#include <cmath>

#include "core/rules/estimated_rate.h"

namespace lrfast {

struct DAdaptAdam : EstimatedRate<DAdaptAdam> {
  static constexpr const char* kName = "dadapt_adam";

  enum Hyper {
    kRate,
    kMomentum,
    kBeta2,
    kEps,
    kWeightDecay,
    kDecoupled,
    kBiasCorrection,
    kLayerScale,
    kGrowthRate,
    kNumHypers
  };
  static constexpr HyperName kHypers[kNumHypers] = {{"lr"},
                                                    {"betas", 0},
                                                    {"betas", 1},
                                                    {"eps"},
                                                    {"weight_decay"},
                                                    {"decouple"},
                                                    {"use_bias_correction"},
                                                    {"layer_scale"},
                                                    {"growth_rate", -1, Unset::kInfinite}};

  enum Form : uint8_t { kPlain, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {{3, {"exp_avg", "exp_avg_sq", "s"}}};
  static constexpr int kMeasuredStates = 1;
  static constexpr int kSeen[kNumForms] = {1};

  static uint8_t form(const double*, bool) { return kPlain; }

  template <class T>
  struct Scalars : MomentScalars<T> {
    T eps;
    T step;                   // 1, or 0 at a learning rate of 0
    T sum_decay, sum_weight;  // of s
    T layer_scale;
    T numerator_weight;  // of a sum over elements; 0: they count in no sum
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock,
                                      const Distance& distance, Powers&& powers) {
    const bool moves = hypers[kRate] > 0.0;
    const double rate = estimated_rate(hypers, clock, distance, powers);
    const double scale = hypers[kLayerScale];
    const double root = std::sqrt(hypers[kBeta2]);
    Scalars<T> s;
    prepare_moments<T>(hypers, distance, rate, scale * rate, 1.0, s);
    s.eps = static_cast<T>(hypers[kEps]);
    s.step = moves ? T(1) : T(0);
    s.sum_decay = static_cast<T>(moves ? root : 1.0);
    s.sum_weight = static_cast<T>(rate * (1.0 - root));
    s.layer_scale = static_cast<T>(scale);
    s.numerator_weight = static_cast<T>(scale * rate);
    return s;
  }

  template <class T>
  LRFAST_HD static Terms<T> measure(T param, T grad, T& sum, T square, const Scalars<T>& s) {
    grad = add_penalty(grad, T(1), param, s.penalty);
    const T numerator = grad * (sum / (std::sqrt(square) + s.eps));
    sum = sum * s.sum_decay + grad * s.sum_weight;
    return {numerator, s.layer_scale * std::fabs(sum)};
  }

  // A NaN raises no estimate.
  LRFAST_HD static void estimate(const double* hypers, const Terms<double>& terms,
                                 Distance& distance) {
    distance.denominator = terms.second;
    if (!(terms.second > 0.0)) return;
    const double root = std::sqrt(hypers[kBeta2]);
    distance.numerator = root * distance.numerator + (1.0 - root) * terms.first;
    double d = distance.numerator / ((1.0 - root) * terms.second);
    const double grown = distance.estimate * hypers[kGrowthRate];
    if (grown < d) d = grown;
    if (d > distance.estimate) distance.estimate = d;
  }

  template <uint8_t form, class T>
  LRFAST_HD static Step<T> step(T param, T& grad, T* states, const Scalars<T>& s) {
    T& square = states[1];
    grad = update_moments<T>(param, grad, states, square, s);
    return {s.step * states[0], std::sqrt(square) + s.eps};
  }
};

}  // namespace lrfast
