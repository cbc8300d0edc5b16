// Reads hyperparameters from torch.optim's param groups: Python dicts that the user, a scheduler or
// load_state_dict may change at any time. A value is converted only when it is another object than
// last time, so that an unchanged group costs a few pointer comparisons per step.
#pragma once

#include <torch/csrc/autograd/python_variable.h>

#include <vector>

#include "bindings/rule_info.h"
#include "core/tables.h"

namespace lrfast::bindings {

class ParamGroupReader {
 public:
  explicit ParamGroupReader(const RuleInfo& rule);

  // Forgets the groups seen so far; count groups follow.
  void reset(size_t count);

  // Brings row up to date with param_groups[index] and returns whether anything changed. Raises
  // ValueError or KeyError, row untouched, for a value that is missing or not finite, or for a
  // negative rate.
  bool read(size_t index, py::handle group, GroupRow& row);

 private:
  py::object value_of(size_t index, py::handle group, size_t hyper) const;
  double to_double(size_t index, size_t hyper, py::handle value) const;
  std::string describe(size_t index, size_t hyper) const;

  RuleInfo rule_;
  std::vector<py::object> keys_;  // [hypers] interned
  py::object frozen_key_;
  std::vector<std::vector<py::object>> seen_;  // [groups][hypers + 1], the last for "frozen"
};

}  // namespace lrfast::bindings
