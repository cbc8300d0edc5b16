// One element of an update: load, convert, apply the rule, convert back, store. The drivers differ
// only in how they walk elements.
#pragma once

#include "core/dtypes.h"
#include "core/platform.h"

namespace lrfast {

// state(k): the element's k-th state, in memory or in a register.
template <class Rule, uint8_t form, class Param, class State, class Scalars>
LRFAST_HD void update_element(Param& param, const Param& grad, State&& state,
                              const Scalars& scalars) {
  constexpr int kStates = Rule::kStates[form].count;
  compute_t<Param> value = to_compute(param);
  compute_t<Param> held[kStates > 0 ? kStates : 1];
  for (int k = 0; k < kStates; ++k) held[k] = to_compute(state(k));
  Rule::template apply<form>(value, to_compute(grad), held, scalars);
  for (int k = 0; k < kStates; ++k) from_compute(held[k], state(k));
  from_compute(value, param);
}

// Calls visit.template operator()<form>() with the rule's form as a constant.
template <class Rule, uint8_t form = 0, class Visitor>
LRFAST_HD void with_form(uint8_t wanted, Visitor&& visit) {
  if constexpr (form + 1 < Rule::kNumForms) {
    if (wanted != form) return with_form<Rule, form + 1>(wanted, visit);
  }
  visit.template operator()<form>();
}

}  // namespace lrfast
