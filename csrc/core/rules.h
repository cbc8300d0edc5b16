// The registry: the one list of update rules. A rule that stands here exists on every device.
#pragma once

#include "core/rules/adadelta.h"
#include "core/rules/adagrad.h"
#include "core/rules/adam.h"
#include "core/rules/adamax.h"
#include "core/rules/adamw_schedule_free.h"
#include "core/rules/dadapt_adam.h"
#include "core/rules/lion.h"
#include "core/rules/muon.h"
#include "core/rules/nadam.h"
#include "core/rules/prodigy.h"
#include "core/rules/radam.h"
#include "core/rules/rmsprop.h"
#include "core/rules/sgd.h"
#include "core/rules/sgd_schedule_free.h"

namespace lrfast {

template <class... Rule>
struct RuleList {
  // Calls visit.template operator()<Rule>() for the rule at that place in the list.
  template <class Visitor>
  static void visit(int rule, Visitor&& visit) {
    int place = 0;
    ((place++ == rule ? visit.template operator()<Rule>() : void()), ...);
  }

  static constexpr int kCount = sizeof...(Rule);
  static constexpr const char* kNames[] = {Rule::kName...};
};

using Rules = RuleList<Sgd, Adam, Adamax, NAdam, RAdam, RmsProp, Adagrad, Adadelta, Lion,
                       AdamWScheduleFree, SgdScheduleFree, Prodigy, DAdaptAdam, Muon>;

}  // namespace lrfast
