// The vocabulary that update rules are written in. A rule is a struct that names its
// hyperparameters, its states and its forms, prepares scalars in double once per tensor and step,
// and applies them to one element. It owns every formula; the drivers own loops, types and memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/math.h"
#include "core/platform.h"
#include "core/tables.h"

namespace lrfast {

struct HyperName {
  const char* key;  // in torch.optim's param group
  int index = -1;   // which item, where the value is a tuple (betas)
};

struct StateNames {
  int count;
  const char* names[kMaxStates];
};

struct TensorClock {
  double count;    // updates applied to this tensor before this one
  double product;  // of the momenta used so far, or negative where none is kept
};

// Powers as a kernel computes them; the CPU driver remembers the last ones instead.
struct PlainPowers {
  LRFAST_HD double operator()(double base, int64_t exponent) const {
    return integer_power(base, exponent);
  }
  // What undoes the bias of the root of a mean of squares.
  LRFAST_HD double root_weight(double base, int64_t exponent) const {
    return 1.0 / std::sqrt(1.0 - integer_power(base, exponent));
  }
};

// A rule's product of momenta if it has none. product_after() starts one at a count of updates.
struct NoProduct {
  static constexpr const char* kProductName = nullptr;
  static constexpr bool kAlwaysProduct = false;
  LRFAST_HD static double product_factor(const double*, double) { return 1.0; }
  static double product_after(const double*, int64_t) { return 1.0; }
};

// The gradient as torch's rules see it first: its sign turned to maximize, then the L2 penalty. No
// penalty is no operation, so that an infinite weight does not turn into NaN.
template <class T>
LRFAST_HD T add_penalty(T grad, T sign, T param, T penalty) {
  grad = sign * grad;
  return penalty != T(0) ? grad + penalty * param : grad;
}

}  // namespace lrfast
