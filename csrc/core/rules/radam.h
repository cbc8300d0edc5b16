// RAdam: Adam with a rectified variance, as torch.optim.RAdam defines it.
//
//   g, m, v as Adam's
//   r <- 2 / (1 - beta2) - 1
//   n <- r - 2 t beta2^t / (1 - beta2^t)
//   p <- p - lr / (1 - beta1^t) * m                                   where n <= 5
//   p <- p - lr / (1 - beta1^t) * m * sqrt(1 - beta2^t) / (sqrt(v) + eps)
//          * sqrt((n - 4) (n - 2) r / ((r - 4) (r - 2) n))            where n > 5
//
// n is the length of a moving average that knows as much of the variance as v does.
//
// Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", arXiv:1908.03265.
#pragma once

#include <cmath>

#include "core/rules/adam_moments.h"

namespace lrfast {

struct RAdam : AdamMoments, Beta1Product<RAdam> {
  static constexpr const char* kName = "radam";

  static constexpr int kNumHypers = kOwn;
  static constexpr auto kHypers = hyper_names();

  enum Form : uint8_t { kPlain, kNumForms };
  static constexpr StateNames kStates[kNumForms] = {
      {2, {"exp_avg", "exp_avg_sq"}, {kMeanKind, kSquareKind}}};

  static uint8_t form(const double*, bool) { return kPlain; }

  template <class T>
  struct Scalars : AdamMoments::Scalars<T> {
    T step_size;
    bool rectified;
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock,
                                      Powers&& powers) {
    const int64_t t = static_cast<int64_t>(clock.count) + 1;
    const double beta2 = hypers[kBeta2];
    const double longest = 2.0 / (1.0 - beta2) - 1.0;
    const double power = powers(beta2, t);
    const double bias = 1.0 - power;
    const double length = longest - 2.0 * static_cast<double>(t) * power / bias;
    double step_size = unbiased_rate(hypers, clock, powers);
    Scalars<T> s;
    s.rectified = length > 5.0;
    if (s.rectified) {
      step_size *= std::sqrt((length - 4.0) * (length - 2.0) * longest * bias /
                             ((longest - 4.0) * (longest - 2.0) * length));
    }
    s.step_size = static_cast<T>(step_size);
    prepare_moments<T>(hypers, t, powers, s);
    return s;
  }

  template <uint8_t form, class T>
  LRFAST_HD static Step<T> step(T param, T& grad, T* states, const Scalars<T>& s) {
    T& mean = states[0];
    T& square = states[1];
    grad = update_moments<T>(param, grad, mean, square, s);
    const T denominator = s.rectified ? std::sqrt(square) + s.eps : T(1);
    return {s.step_size * mean, denominator};
  }
};

}  // namespace lrfast
