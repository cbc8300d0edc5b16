// Between the two passes of a rule with directions: matrices of one shape lie one behind another,
// and one product serves all of them. What is made of a stack is Python's.
#pragma once

#include <vector>

#include "bindings/param_groups.h"
#include "bindings/plan.h"

namespace lrfast::bindings {

class Directions {
 public:
  // products(stack, groups, params, state, outputs) changes a stack [matrices, rows, columns] in
  // place, whose matrices belong to those parameters, with that many outputs, their first
  // dimension, and says whether it has to find zeros where the next step makes no direction. state
  // is the optimizer's.
  // products.settings(groups) is compared with its own result of before, by a captured step.
  explicit Directions(py::object products) : products_(std::move(products)) {}

  // Gives every parameter of such a group its place, if groups or parameters have changed since.
  void place(std::vector<Parameter>& parameters, const ParamGroups& groups, int form,
             std::vector<DevicePlan>& plans, const EngineOptions& options);
  void forget() { is_current_ = false; }  // parameters have changed

  bool is_empty() const { return stacks_.empty(); }
  // Calls the products for what the first pass has made. Returns what is to be zero after the
  // second one.
  std::vector<at::Tensor> transform(const std::vector<Parameter>& parameters,
                                    const ParamGroups& groups, const std::vector<DevicePlan>& plans,
                                    const py::dict& state) const;
  py::object settings(const py::list& param_groups) const;

 private:
  struct Stack {
    at::Tensor matrices;
    int64_t outputs;
    std::vector<int32_t> parameters;  // [matrices] places among all
  };

  py::object products_;
  std::vector<Stack> stacks_;
  std::vector<bool> has_direction_;  // [groups] when places were given
  bool is_current_ = false;
};

}  // namespace lrfast::bindings
