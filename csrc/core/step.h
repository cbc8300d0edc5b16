// What every driver does around its element loop: a group's hyperparameters at this step, a
// tensor's scalars, and the advance of the counts afterwards.
#pragma once

#include "core/rule.h"
#include "core/schedule.h"
#include "core/tables.h"

namespace lrfast {

LRFAST_HD bool is_stopped(const StepTables& t) { return t.stop != nullptr && *t.stop != 0.0; }

LRFAST_HD bool is_updated(const StepTables& t, int32_t tensor) {
  return t.grads[tensor] != nullptr && t.groups[t.tensors[tensor].group].frozen == 0;
}

// The group's hyperparameters with its schedule's values at this step in place.
template <class Rule>
LRFAST_HD void resolve_hypers(const GroupRow& group, const ScheduleValues& values, double* hypers) {
  for (int i = 0; i < Rule::kNumHypers; ++i) hypers[i] = group.hypers[i];
  hypers[Rule::kRate] *= values.rate;
  if (values.cycles_momentum) hypers[Rule::kMomentum] = values.momentum;
}

template <class Rule, class T>
LRFAST_HD typename Rule::template Scalars<T> prepare(const TensorRow& row, const double* hypers) {
  const TensorClock clock{*row.count, row.momentum_product ? *row.momentum_product : -1.0};
  return Rule::template prepare<T>(hypers, clock);
}

// After a tensor's update. Only now: until then other threads still read the old counts.
LRFAST_HD void advance(const TensorRow& row, double momentum) {
  *row.count += 1.0f;
  if (row.momentum_product) *row.momentum_product *= momentum;
}

}  // namespace lrfast
