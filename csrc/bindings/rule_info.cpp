#include "bindings/rule_info.h"

#include <iterator>
#include <stdexcept>

#include "core/rules.h"

namespace lrfast::bindings {

RuleInfo find_rule(const std::string& name) {
  for (int place = 0; place < Rules::kCount; ++place) {
    if (name != Rules::kNames[place]) continue;
    RuleInfo info;
    Rules::visit(place, [&]<class Rule>() {
      info = {place,
              Rule::kName,
              {std::begin(Rule::kHypers), std::end(Rule::kHypers)},
              {std::begin(Rule::kStates), std::end(Rule::kStates)},
              Rule::kCountName,
              Rule::kProductName,
              Rule::kLargestName,
              kCodesOnCuda<Rule>,
              Rule::kAlwaysProduct,
              Measures<Rule>,
              &Rule::form,
              &Rule::product_after};
    });
    return info;
  }
  throw std::invalid_argument("rule must be one of core/rules.h's list, got '" + name + "'");
}

}  // namespace lrfast::bindings
