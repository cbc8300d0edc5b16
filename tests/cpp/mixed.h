// Plans that hold a bit of everything, for every registered rule.
#pragma once

#include <vector>

#include "fixture.h"

namespace lrfast::test {

constexpr int64_t kNumels[] = {0, 1, 3, 5, 33, 64, 4097};

// All pairs of dtypes, forms and sizes, in groups of their own rates, with and without a running
// product and a moving average.
LRFAST_NOINLINE inline std::vector<TensorSpec> mixed_specs(int rule) {
  std::vector<TensorSpec> specs;
  for (const DtypePair dtypes : kAllDtypePairs) {
    for (int form = 0; form < rule_info(rule).num_forms; ++form) {
      for (const int64_t numel : kNumels) {
        TensorSpec spec{numel, dtypes, static_cast<uint8_t>(form)};
        spec.group = static_cast<int32_t>(specs.size() % 3);
        spec.count = static_cast<float>(specs.size() % 4);
        spec.has_product = specs.size() % 5 == 0;
        specs.push_back(spec);
      }
    }
  }
  return specs;
}

// States in 8 bits: whole blocks, blocks that are cut off, tensors of less than one, beside others.
LRFAST_NOINLINE inline std::vector<TensorSpec> coded_specs(int rule) {
  std::vector<TensorSpec> specs;
  for (const DtypePair dtypes : kAllDtypePairs) {
    for (int form = 0; form < rule_info(rule).num_forms; ++form) {
      for (const int64_t numel : {int64_t{1}, int64_t{255}, int64_t{256}, int64_t{257},
                                  int64_t{512}, int64_t{20003} / rule_info(rule).num_forms}) {
        TensorSpec spec{numel, dtypes, static_cast<uint8_t>(form)};
        spec.group = static_cast<int32_t>(specs.size() % 3);
        spec.count = static_cast<float>(specs.size() % 4);
        spec.has_average = specs.size() % 5 == 3;
        spec.coded = true;
        spec.master = static_cast<uint8_t>(specs.size() / 2 % 3);
        specs.push_back(spec);
      }
    }
  }
  return specs;
}

// The same with averages in most tensors, and master bits in some; some have no gradient.
LRFAST_NOINLINE inline std::vector<TensorSpec> passes_specs(int rule) {
  std::vector<TensorSpec> specs = mixed_specs(rule);
  for (size_t i = 0; i < specs.size(); ++i) {
    specs[i].has_average = i % 4 != 3;
    specs[i].has_grad = i % 11 != 10;
    specs[i].master = static_cast<uint8_t>(i / 2 % 3);
  }
  return specs;
}

LRFAST_NOINLINE inline std::vector<GroupRow> three_groups(int rule) {
  return {make_group(rule, 0.1), make_group(rule, 0.01, 0.8, true), make_group(rule, 0.5, 0.0)};
}

inline Plan make_mixed(int rule, int64_t chunk_size) {
  return Plan(rule, mixed_specs(rule), three_groups(rule), chunk_size);
}

}  // namespace lrfast::test
