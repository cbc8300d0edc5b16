// What Python needs to know of an update rule: the names it reads and the states it keeps.
#pragma once

#include <string>
#include <vector>

#include "core/rule.h"

namespace lrfast::bindings {

// A kind of param groups: those of most rules are of one.
struct GroupKind {
  std::string name;  // in a group's "rule"; empty: it is the only one
  std::vector<HyperName> hypers;
};

struct RuleInfo {
  int place;  // in core/rules.h's list
  std::string name;
  std::vector<GroupKind> kinds;
  int kind_hyper;      // hyperparameter that holds the number of a group's kind, or -1
  int direction_form;  // form of tensors that have a direction, or -1
  std::vector<StateNames> forms;
  const char* count_name;            // state that holds the tensor's update count, or null
  const char* product_name;          // state that holds the product of the momenta used, or null
  const char* largest_name;          // state that holds the largest learning rate so far, or null
  bool codes_on_cuda;                // whether a GPU can keep its states in 8 bits
  bool keeps_masters;                // whether half parameters may have master bits
  bool always_product;               // keeps it even while no schedule cycles the momentum
  bool measures;                     // a distance, in a pass before the update
  std::vector<std::string> options;  // of an update, by Python's names, that it can have
  uint8_t (*form)(const double* hypers, bool cycles_momentum);
  double (*product_after)(const double* hypers, int64_t count);

  bool needs_product(uint8_t of_form, bool cycles_momentum) const {
    return product_name != nullptr && of_form != direction_form &&
           (always_product || cycles_momentum);
  }
};

// Throws std::invalid_argument for a name that core/rules.h does not list.
RuleInfo find_rule(const std::string& name);

}  // namespace lrfast::bindings
