// Schedule-free SGD, as schedulefree.SGDScheduleFree defines it: the step of schedule_free.h along
//
//   d <- g + weight_decay * y
//
// with momentum for beta.
//
// Defazio et al., "The Road Less Scheduled", arXiv:2405.15682.
#pragma once

#include "core/rules/schedule_free.h"

namespace lrfast {

struct SgdScheduleFree : ScheduleFree<SgdScheduleFree> {
  static constexpr const char* kName = "sgd_schedule_free";

  enum Hyper { kRate, kBeta, kWeightDecay, kWarmupSteps, kR, kWeightLrPower, kNumHypers };
  static constexpr HyperName kHypers[kNumHypers] = {
      {"lr"}, {"momentum"}, {"weight_decay"}, {"warmup_steps"}, {"r"}, {"weight_lr_power"}};

  enum Form : uint8_t { kPlain, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {{1, {"z"}}};

  static uint8_t form(const double*, bool) { return kPlain; }

  template <class T>
  using Scalars = MeanScalars<T>;

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock, Powers&&) {
    Scalars<T> s;
    prepare_mean<T>(hypers, clock, hypers[kBeta], s);
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static void apply(T& param, T grad, T* states, const Scalars<T>& s) {
    move<T>(param, states[0], grad, s);
  }
};

}  // namespace lrfast
