// The vocabulary that update rules are written in. A rule is a struct that names its
// hyperparameters, its states and its forms, prepares scalars in double once per tensor and step,
// and applies them to one element. It owns every formula; the drivers own loops, types and memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/codes.h"
#include "core/math.h"
#include "core/platform.h"
#include "core/tables.h"

namespace lrfast {

// Values that stand for no number.
enum class Unset : uint8_t { kNever, kInfinite, kNone };  // None is read as kNoValue
constexpr double kNoValue = -1.0;

struct HyperName {
  const char* key;  // in torch.optim's param group; null: of another kind of group, 0 in this one
  int index = -1;   // which item, where the value is a tuple (betas)
  Unset unset = Unset::kNever;
};

struct StateNames {
  int count;
  const char* names[kMaxStates];
  StateKind kinds[kMaxStates] = {};  // a rule whose states are kWide keeps none in 8 bits
};

// A rule that measures a distance in a pass of its own, before its update. So many of its last
// states are the pass's, and step() sees the others; the first of them is a running sum, which
// measure() updates. kSeen is, for each form, the place of the state that measure() sees besides.
template <class Rule>
concept Measures = requires { Rule::kMeasuredStates; };

template <class Rule, uint8_t form>
constexpr int applied_states() {
  if constexpr (Measures<Rule>) {
    return Rule::kStates[form].count - Rule::kMeasuredStates;
  } else {
    return Rule::kStates[form].count;
  }
}

// What an element, or many together, add to the two sums of a pass before the update: numerator and
// denominator of a distance, or those of foresee_element over a tensor.
template <class T>
struct Terms {
  T first;
  T second;
};

// Whether a GPU, too, can keep a rule's states in 8 bits.
template <class Rule>
constexpr bool kCodesOnCuda = true;
// Of a tensor with more states a GPU keeps none: three of Adam's spill 384 bytes at 64 registers.
constexpr int kMostCodedOnCuda = 2;

struct TensorClock {
  double count;    // updates applied to this tensor before this one
  double product;  // of the momenta used so far, or negative where none is kept
  double largest;  // learning rate so far; 0 where none is kept

  bool operator==(const TensorClock&) const = default;
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

// The largest learning rate so far, of a rule that keeps none.
struct NoLargest {
  static constexpr const char* kLargestName = nullptr;
  LRFAST_HD static double largest_next(const double*, const TensorClock& clock) {
    return clock.largest;
  }
};

// A rule's product of momenta if it has none. product_next() is that after one more update;
// product_after() starts one at a count of updates.
struct NoProduct : NoLargest {
  static constexpr const char* kProductName = nullptr;
  static constexpr bool kAlwaysProduct = false;
  LRFAST_HD static double product_next(const double*, const TensorClock& clock) {
    return clock.product;
  }
  static double product_after(const double*, int64_t) { return 1.0; }
};

// The product of a rule that divides its mean of gradients by 1 - beta1^t. When a schedule cycles
// beta1, the product of the betas actually used stands for beta1^t: the power is up to 10.6 % wrong
// while beta1 goes from 0.95 to 0.85 in 50 steps.
template <class Rule>
struct Beta1Product : NoLargest {
  static constexpr const char* kProductName = "beta1_product";  // kept while beta1 is cycled
  static constexpr bool kAlwaysProduct = false;

  LRFAST_HD static double product_next(const double* hypers, const TensorClock& clock) {
    return clock.product * hypers[Rule::kMomentum];
  }

  static double product_after(const double* hypers, int64_t count) {
    return integer_power(hypers[Rule::kMomentum], count);
  }

  // lr / (1 - beta1^t)
  template <class Powers>
  LRFAST_HD static double unbiased_rate(const double* hypers, const TensorClock& clock,
                                        Powers&& powers) {
    const double beta1 = hypers[Rule::kMomentum];
    const int64_t t = static_cast<int64_t>(clock.count) + 1;
    const double power = clock.product >= 0.0 ? product_next(hypers, clock) : powers(beta1, t);
    return hypers[Rule::kRate] / (1.0 - power);
  }
};

// Whether a rule's step is two passes over some of its tensors, with products of matrices between
// them: rules/muon.h. kWithDirection is their form in the first pass, kMoved in the second one.
template <class Rule>
constexpr bool kHasDirections = requires { Rule::kMoved; };

// Whether half parameters may have master bits: not where other passes read them, too, or the
// optimizer writes them between steps, as the schedule-free ones do, which keep a largest rate.
template <class Rule>
constexpr bool kKeepsMasters =
    !Measures<Rule> && !kHasDirections<Rule> && Rule::kLargestName == nullptr;

// By how much an element moves against its gradient, decay apart: a fraction, of which the sign is
// the numerator's.
template <class T>
struct Step {
  T numerator;
  T denominator = T(1);
};

// A rule whose update is a step, before which a decoupled decay, if it has one, has shrunk the
// parameter. step() turns the gradient into what its moments have seen. Other forms have an apply()
// that moves the parameter as it likes.
template <class Rule, uint8_t form>
concept Steps = requires(float value, const typename Rule::template Scalars<float>& s) {
  Rule::template step<form>(value, value, &value, s);
};
template <class Rule>
constexpr bool kSteps = Steps<Rule, Rule::kNumForms - 1>;

// Whether some groups' decay is decoupled.
template <class Rule>
constexpr bool kDecouples =
    kSteps<Rule> && requires(typename Rule::template Scalars<float> s) { s.shrink; };

// Options of an update that need sums over each tensor before it: a rule that has its own pass
// before the update takes none. Without momentum every step goes along its gradient anyway.
template <class Rule>
constexpr bool kHasOwnPass = Measures<Rule> || kHasDirections<Rule>;
template <class Rule>
constexpr bool kTakesCaution = kSteps<Rule> && Rule::kMomentum >= 0 && !kHasOwnPass<Rule>;
template <class Rule>
constexpr bool kTakesClipping =
    !kHasOwnPass<Rule> && requires(float value, const typename Rule::template Scalars<float>& s) {
      Rule::ratio(value, &value, s);
    };
template <class Rule>
constexpr bool kTakesOptions = kTakesCaution<Rule> || kTakesClipping<Rule> || kDecouples<Rule>;

// The learning rate that decoupled decay goes by, behind a group's hyperparameters at a step.
constexpr int kDecayRate = kMaxHypers;
constexpr int kHyperSlots = kMaxHypers + 1;

// What a decoupled weight decay leaves of a parameter.
LRFAST_HD double decay_factor(double rate, double weight_decay) {
  return 1.0 - rate * weight_decay;
}

// The gradient as torch's rules see it first: its sign turned to maximize, then the L2 penalty. No
// penalty is no operation, so that an infinite weight does not turn into NaN.
template <class T>
LRFAST_HD T add_penalty(T grad, T sign, T param, T penalty) {
  grad = sign * grad;
  return penalty != T(0) ? grad + penalty * param : grad;
}

}  // namespace lrfast
