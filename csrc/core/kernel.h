// One element of an update: load, convert, apply the rule, convert back, store. The drivers differ
// only in how they walk elements.
#pragma once

#include <type_traits>

#include "core/dtypes.h"
#include "core/noise.h"
#include "core/platform.h"
#include "core/rule.h"

namespace lrfast {

// Stores a value as its element type has it.
template <class T, class Element>
LRFAST_HD void store(T value, Element& out, const Noise& noise, int64_t element, int which) {
  if constexpr (std::is_same_v<Element, StochasticBFloat16>) {
    from_compute(value, out, noise(element, which));
  } else {
    from_compute(value, out);
  }
}

// How an update's options change an element.
template <class T>
struct Caution {
  T agreeing;  // multiplies a step that goes along its gradient
  T opposed;   // one that goes against it, or nowhere: 0, or as agreeing
  T spared;    // what decay leaves of a parameter that the step takes away from 0: 1, or as others
};

// What an element's update needs besides the element; prepared once per tensor and step.
template <class Rule, class T>
struct Update {
  typename Rule::template Scalars<T> scalars;
  T factor;  // multiplies the gradient: the scaler's inverse times the clipping
  Noise noise;
  T average_weight;  // of the updated parameter in its moving average
  Caution<T> caution;
};

// Also where their product would vanish.
template <class T>
LRFAST_HD bool have_same_sign(T a, T b) {
  return (a > T(0) && b > T(0)) || (a < T(0) && b < T(0));
}

// The parameter's move by its rule; states: copies that the rule updates.
template <class Rule, uint8_t form, bool cautious, class T>
LRFAST_HD void move_element(T& value, T grad, T* states, const Update<Rule, T>& update) {
  const auto& s = update.scalars;
  if constexpr (!Steps<Rule, form>) {
    Rule::template apply<form>(value, grad, states, s);
  } else {
    const Step<T> step = Rule::template step<form>(value, grad, states, s);
    T moved = step.numerator / step.denominator;
    if constexpr (cautious) {
      const Caution<T>& c = update.caution;
      if constexpr (kTakesCaution<Rule>) {
        moved = moved * (have_same_sign(step.numerator, grad) ? c.agreeing : c.opposed);
      }
      if constexpr (kDecouples<Rule>) {
        value = value * (have_same_sign(moved, -value) ? c.spared : s.shrink) - moved;
      } else {
        value = value - moved;
      }
    } else if constexpr (kDecouples<Rule>) {
      value = value * s.shrink - moved;
    } else {
      value = value - moved;
    }
  }
}

// state(k): the element's k-th state, in memory or in a register; element: its index in the tensor.
template <class Rule, uint8_t form, bool cautious = false, class Param, class Grad, class State>
LRFAST_HD void update_element(Param& param, const Grad& grad, State&& state,
                              const Update<Rule, compute_t<Param>>& update, int64_t element) {
  constexpr int kStates = applied_states<Rule, form>();
  compute_t<Param> value = to_compute(param);
  compute_t<Param> held[kStates > 0 ? kStates : 1];
  for (int k = 0; k < kStates; ++k) held[k] = to_compute(state(k));
  move_element<Rule, form, cautious>(value, to_compute(grad) * update.factor, held, update);
  for (int k = 0; k < kStates; ++k) store(held[k], state(k), update.noise, element, k + 1);
  store(value, param, update.noise, element, 0);
}

// The pass before an update with options that need sums over a tensor: the update on copies. Counts
// the steps that go along their gradients, and adds the squares of ratios if they are wanted.
template <class Rule, uint8_t form, bool squares, class Param, class State>
LRFAST_HD Terms<compute_t<Param>> foresee_element(const Param& param, const Param& grad,
                                                  State&& state,
                                                  const Update<Rule, compute_t<Param>>& update) {
  using T = compute_t<Param>;
  constexpr int kStates = Rule::kStates[form].count;
  T held[kStates > 0 ? kStates : 1];
  for (int k = 0; k < kStates; ++k) held[k] = to_compute(state(k));
  T seen = to_compute(grad) * update.factor;
  const Step<T> step = Rule::template step<form>(to_compute(param), seen, held, update.scalars);
  Terms<T> terms{have_same_sign(step.numerator, seen) ? T(1) : T(0), T(0)};
  if constexpr (squares) {
    const T ratio = Rule::ratio(seen, held, update.scalars);
    terms.second = ratio * ratio;
  }
  return terms;
}

// The pass before the update of a rule that measures a distance: an element's terms, and its
// running sum brought up to date.
template <class Rule, uint8_t form, class Param, class State>
LRFAST_HD Terms<compute_t<Param>> measure_element(const Param& param, const Param& grad, State& sum,
                                                  const State& seen,
                                                  const Update<Rule, compute_t<Param>>& update,
                                                  int64_t element) {
  compute_t<Param> held = to_compute(sum);
  const auto terms = Rule::measure(to_compute(param), to_compute(grad) * update.factor, held,
                                   to_compute(seen), update.scalars);
  store(held, sum, update.noise, element, applied_states<Rule, form>() + 1);
  return terms;
}

// An exponential moving average's step towards a value; weight: 1 - decay. One of 1 takes the value
// as it is, which the difference would round.
template <class T>
LRFAST_HD void average_element(T& average, T value, T weight) {
  average = weight == T(1) ? value : average + (value - average) * weight;
}

// Adds a square to a sum: of gradients for their norm, of updates and weights for telemetry.
template <class Sum, class T>
LRFAST_HD void add_square(Sum& sum, T value) {
  sum += value * value;
}

// An element's update as telemetry counts it: in double, of what has been stored.
LRFAST_HD double change_of(double before, double after) { return after - before; }

// Calls visit.template operator()<form>() with the rule's form as a constant.
template <class Rule, uint8_t form = 0, class Visitor>
LRFAST_HD void with_form(uint8_t wanted, Visitor&& visit) {
  if constexpr (form + 1 < Rule::kNumForms) {
    if (wanted != form) return with_form<Rule, form + 1>(wanted, visit);
  }
  visit.template operator()<form>();
}

}  // namespace lrfast
