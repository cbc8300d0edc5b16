// Plans that hold a bit of everything, for every registered rule.
#pragma once

#include <vector>

#include "fixture.h"

namespace lrfast::test {

constexpr int64_t kNumels[] = {0, 1, 3, 5, 16, 33, 4097};

template <class Rule>
constexpr int kPlace = [] {
  int place = 0;
  while (Rules::kNames[place] != Rule::kName) ++place;
  return place;
}();

template <class Body>
void for_each_rule(Body&& body) {
  for (int place = 0; place < Rules::kCount; ++place) {
    const Context context("rule ", Rules::kNames[place]);
    Rules::visit(place, body);
  }
}

// All kinds, forms and sizes, in groups of their own rates, with and without a running product.
template <class Rule>
LRFAST_NOINLINE std::vector<TensorSpec> mixed_specs() {
  std::vector<TensorSpec> specs;
  for (const Kind kind : kAllKinds) {
    for (uint8_t form = 0; form < Rule::kNumForms; ++form) {
      for (const int64_t numel : kNumels) {
        TensorSpec spec{numel, kind, form};
        spec.group = static_cast<int32_t>(specs.size() % 3);
        spec.count = static_cast<float>(specs.size() % 4);
        spec.has_product = specs.size() % 5 == 0;
        specs.push_back(spec);
      }
    }
  }
  return specs;
}

template <class Rule>
Plan make_mixed(int64_t chunk_size) {
  return Plan::make<Rule>(
      mixed_specs<Rule>(),
      {make_group<Rule>(0.1), make_group<Rule>(0.01, 0.8), make_group<Rule>(0.5, 0.0)}, chunk_size);
}

}  // namespace lrfast::test
