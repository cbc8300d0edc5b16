// What a test needs to know of a rule whose type it does not have: tests name rules by their place
// in the registry, so that each rule's code is compiled once and not in every program.
#pragma once

#include <algorithm>
#include <string_view>

#include "core/rules.h"
#include "core/tables.h"

#include "check.h"

namespace lrfast::test {

constexpr int kMaxForms = 4;

struct RuleInfo {
  const char* name;
  int num_forms;
  int num_states[kMaxForms];
  StateKind kinds[kMaxForms][kMaxStates];
  int momentum;  // its hyperparameter, or -1
  int weight_decay;
  bool always_product;
  bool measures;  // a distance
  int applied_states[kMaxForms];
  bool codes_on_cuda;
  bool keeps_masters;
  bool decouples;  // its weight decay, in some groups
  bool takes_caution;
  bool takes_clipping;
};

LRFAST_NOINLINE inline RuleInfo rule_info(int rule) {
  RuleInfo info{};
  Rules::visit(rule, [&]<class Rule>() {
    static_assert(Rule::kRate == 0 && Rule::kNumForms <= kMaxForms);
    info = {Rule::kName,
            Rule::kNumForms,
            {},
            {},
            Rule::kMomentum,
            Rule::kWeightDecay,
            Rule::kAlwaysProduct,
            Measures<Rule>,
            {},
            kCodesOnCuda<Rule>,
            kKeepsMasters<Rule>,
            kDecouples<Rule>,
            kTakesCaution<Rule>,
            kTakesClipping<Rule>};
    for (int form = 0; form < Rule::kNumForms; ++form) {
      info.num_states[form] = info.applied_states[form] = Rule::kStates[form].count;
      if constexpr (Measures<Rule>) info.applied_states[form] -= Rule::kMeasuredStates;
      std::copy_n(Rule::kStates[form].kinds, kMaxStates, info.kinds[form]);
    }
  });
  return info;
}

template <class Rule>
constexpr int kPlace = [] {
  int place = 0;
  while (Rules::kNames[place] != Rule::kName) ++place;
  return place;
}();

// body(place) for each rule.
template <class Body>
void for_each_rule(Body&& body) {
  for (int rule = 0; rule < Rules::kCount; ++rule) {
    const Context context("rule ", Rules::kNames[rule]);
    body(rule);
  }
}

// A value that is not neutral for each of torch's names, so that a new rule is tested from the day
// it is registered. The switches (nesterov, maximize) stand on in every other group.
LRFAST_NOINLINE inline GroupRow make_group(int rule, double rate, double momentum = 0.9,
                                           bool switches = false) {
  GroupRow group{};
  Rules::visit(rule, [&]<class Rule>() {
    for (int i = 0; i < Rule::kNumHypers; ++i) {
      const std::string_view key = Rule::kHypers[i].key;
      double& value = group.hypers[i];
      if (key == "lr") value = rate;
      if (i == Rule::kMomentum) value = momentum;
      if (key == "betas" && Rule::kHypers[i].index == 1) value = 0.99;
      if (key == "alpha" || key == "rho") value = 0.98;
      if (key == "eps") value = 1e-8;
      if (key == "weight_decay") value = 0.01;
      if (key == "dampening") value = 0.25;
      if (key == "lr_decay") value = 0.125;
      if (key == "momentum_decay") value = 0.004;
      if (key == "momentum") value = momentum;
      if (key == "betas" && Rule::kHypers[i].index == 0) value = momentum;
      if (key == "warmup_steps") value = 5.0;
      if (key == "r") value = 0.5;
      if (key == "weight_lr_power") value = 1.5;
      if (key == "beta3") value = switches ? kNoValue : 0.96;
      if (key == "d0") value = 0.25;
      if (key == "layer_scale") value = 1.25;
      if (key == "d_coef") value = 0.8;
      if (key == "growth_rate") value = 1.0;
      if (key == "decouple" || key == "use_bias_correction") value = switches;
      if (key == "safeguard_warmup") value = switches;
      if (key == "nesterov" || key == "decoupled_weight_decay") value = switches;
      if (key == "maximize") value = switches;
    }
  });
  group.schedule = -1;
  return group;
}

}  // namespace lrfast::test
