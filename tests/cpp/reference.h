// A step without chunks, grids, threads, vectors or memos: tensor after tensor, element after
// element. It shares the rules' formulas with the drivers and nothing that the drivers do.
#pragma once

#include "fixture.h"

namespace lrfast::test {

template <class Rule, uint8_t form, class Param, class State>
LRFAST_NOINLINE void reference_tensor(Tensor& tensor, const double* hypers) {
  using T = compute_t<Param>;
  const TensorClock clock{*tensor.count.as<float>(),
                          tensor.spec.has_product ? *tensor.product.as<double>() : -1.0};
  const auto scalars = Rule::template prepare<T>(hypers, clock);
  for (int64_t i = 0; i < tensor.spec.numel; ++i) {
    T param = to_compute(tensor.param.as<Param>()[i]);
    T states[kMaxStates] = {};
    for (size_t k = 0; k < tensor.states.size(); ++k) {
      states[k] = to_compute(tensor.states[k].as<State>()[i]);
    }
    Rule::template apply<form>(param, to_compute(tensor.grad.as<Param>()[i]), states, scalars);
    for (size_t k = 0; k < tensor.states.size(); ++k) {
      from_compute(states[k], tensor.states[k].as<State>()[i]);
    }
    from_compute(param, tensor.param.as<Param>()[i]);
  }
}

template <class Rule>
LRFAST_NOINLINE void reference_step(Plan& plan) {
  if (plan.has_stop && plan.stop != 0.0) return;
  const StepTables t = plan.tables();
  Clock& clock = *plan.clock.as<Clock>();
  std::vector<std::array<double, kMaxHypers>> hypers;
  for (size_t g = 0; g < plan.groups.size(); ++g) {
    const GroupRow& group = plan.groups[g];
    const ScheduleValues values = evaluate(t.schedules, group.schedule, clock.applied);
    hypers.push_back(std::to_array(group.hypers));
    hypers[g][Rule::kRate] = group.hypers[Rule::kRate] * values.rate;
    if (values.cycles_momentum) hypers[g][Rule::kMomentum] = values.momentum;
    plan.rates.as<double>()[g] = hypers[g][Rule::kRate];
  }
  for (Tensor& tensor : plan.tensors) {
    const TensorSpec& spec = tensor.spec;
    if (!spec.has_grad || plan.groups[spec.group].frozen != 0) continue;
    const double* row = hypers[spec.group].data();
    with_types(spec.kind, [&]<class Param, class State>() {
      with_form<Rule>(spec.form, [&]<uint8_t form>() {
        reference_tensor<Rule, form, Param, State>(tensor, row);
      });
    });
    *tensor.count.as<float>() += 1.0f;
    if (spec.has_product) *tensor.product.as<double>() *= row[Rule::kMomentum];
  }
  clock.applied += 1;
}

}  // namespace lrfast::test
