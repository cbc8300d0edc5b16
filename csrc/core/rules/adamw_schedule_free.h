// Schedule-free AdamW, as schedulefree.AdamWScheduleFree defines it.
//
//   v <- beta2 * v + (1 - beta2) * g^2
//   d <- g / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * y
//
// and the step of schedule_free.h with beta1.
//
// Defazio et al., "The Road Less Scheduled", arXiv:2405.15682.
#pragma once

#include <cmath>

#include "core/rules/schedule_free.h"

namespace lrfast {

struct AdamWScheduleFree : ScheduleFree<AdamWScheduleFree> {
  static constexpr const char* kName = "adamw_schedule_free";

  enum Hyper {
    kRate,
    kBeta1,
    kBeta2,
    kEps,
    kWeightDecay,
    kWarmupSteps,
    kR,
    kWeightLrPower,
    kNumHypers
  };
  static constexpr HyperName kHypers[kNumHypers] = {{"lr"},  {"betas", 0},       {"betas", 1},
                                                    {"eps"}, {"weight_decay"},   {"warmup_steps"},
                                                    {"r"},   {"weight_lr_power"}};

  enum Form : uint8_t { kPlain, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {{2, {"z", "exp_avg_sq"}}};

  static uint8_t form(const double*, bool) { return kPlain; }

  template <class T>
  struct Scalars : MeanScalars<T> {
    T beta2, square_weight;  // square_weight: 1 - beta2
    T root_weight;           // 1 / sqrt(1 - beta2^t)
    T eps;
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock,
                                      Powers&& powers) {
    Scalars<T> s;
    prepare_mean<T>(hypers, clock, hypers[kBeta1], s);
    const int64_t t = static_cast<int64_t>(clock.count) + 1;
    s.root_weight = static_cast<T>(powers.root_weight(hypers[kBeta2], t));
    s.beta2 = static_cast<T>(hypers[kBeta2]);
    s.square_weight = static_cast<T>(1.0 - hypers[kBeta2]);
    s.eps = static_cast<T>(hypers[kEps]);
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static void apply(T& param, T grad, T* states, const Scalars<T>& s) {
    T& square = states[1];
    square = square * s.beta2 + grad * grad * s.square_weight;
    move<T>(param, states[0], grad / (std::sqrt(square) * s.root_weight + s.eps), s);
  }
};

}  // namespace lrfast
