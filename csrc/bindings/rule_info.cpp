#include "bindings/rule_info.h"

#include <iterator>
#include <stdexcept>

#include "core/rules.h"

namespace lrfast::bindings {
namespace {

template <class Rule>
std::vector<GroupKind> kinds_of() {
  if constexpr (kHasDirections<Rule>) {
    std::vector<GroupKind> kinds;
    for (int kind = 0; kind < Rule::kNumKinds; ++kind) {
      const auto& hypers = Rule::kKindHypers[kind];
      kinds.push_back({Rule::kKinds[kind], {std::begin(hypers), std::end(hypers)}});
    }
    return kinds;
  } else {
    return {{"", {std::begin(Rule::kHypers), std::end(Rule::kHypers)}}};
  }
}

template <class Rule>
constexpr std::pair<int, int> kind_places() {
  if constexpr (kHasDirections<Rule>) return {Rule::kKind, Rule::kWithDirection};
  return {-1, -1};
}

template <class Rule>
std::vector<std::string> options_of() {
  std::vector<std::string> names;
  if (kTakesCaution<Rule>) names.push_back("cautious");
  if (kDecouples<Rule>) names.push_back("cautious_weight_decay");
  if (kTakesClipping<Rule>) names.push_back("clipping_threshold");
  if (kDecouples<Rule> && !Measures<Rule>) names.push_back("scheduled_weight_decay");
  return names;
}

// Of a tensor between two steps.
template <class Rule>
constexpr int num_forms() {
  if constexpr (kHasDirections<Rule>) return Rule::kMoved;
  return Rule::kNumForms;
}

}  // namespace

RuleInfo find_rule(const std::string& name) {
  for (int place = 0; place < Rules::kCount; ++place) {
    if (name != Rules::kNames[place]) continue;
    RuleInfo info;
    Rules::visit(place, [&]<class Rule>() {
      info = {place,
              Rule::kName,
              kinds_of<Rule>(),
              kind_places<Rule>().first,
              kind_places<Rule>().second,
              {std::begin(Rule::kStates), std::begin(Rule::kStates) + num_forms<Rule>()},
              Rule::kCountName,
              Rule::kProductName,
              Rule::kLargestName,
              kCodesOnCuda<Rule>,
              kKeepsMasters<Rule>,
              Rule::kAlwaysProduct,
              Measures<Rule>,
              options_of<Rule>(),
              &Rule::form,
              &Rule::product_after};
    });
    return info;
  }
  throw std::invalid_argument("rule must be one of core/rules.h's list, got '" + name + "'");
}

}  // namespace lrfast::bindings
