// One parameter as the engine holds it: whose it is, where its memory and its states are, and how
// it comes to be laid out as the kernels need it.
#pragma once

#include <torch/csrc/autograd/python_variable.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/rule_info.h"
#include "core/tables.h"

namespace lrfast::bindings {

struct Slot {
  py::object object;  // the parameter in param_groups; its identity is the slot's
  at::Tensor param;
  int32_t group = 0;
  int32_t place = 0;   // in the group
  int32_t device = 0;  // which of the engine's device plans
  int32_t row = 0;     // in that plan

  bool is_bound = false;      // states are known, the row is valid
  bool starts_fresh = false;  // its states were absent when it got its first gradient
  uint8_t form = 0;
  std::vector<at::Tensor> states;
  at::Tensor count;
  at::Tensor product;
  py::object state_dict;                                        // optimizer.state[parameter]
  std::vector<std::pair<py::object, const PyObject*>> entries;  // of it, those bound

  // The parameter as it was when its row was made; storage can be swapped under the same object.
  const void* param_data = nullptr;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  at::Tensor staged_param;  // dense stand-in for a parameter with gaps in memory
  at::Tensor staged_grad;   // gradient in the parameter's layout, where it comes in another

  std::string describe() const;
};

// Strides [dim] of the memory that the kernels walk: the parameter's own where it is dense.
std::vector<int64_t> layout_strides(const at::Tensor& param);

// Raises for a parameter that no kernel can update, and notes how it lies in memory.
void inspect_param(Slot& slot);

// Whether the parameter still lies in memory as inspect_param() found it.
bool is_unchanged(const Slot& slot);

// Where the kernels find the gradient, laid out like the parameter; null for none. Raises for a
// gradient of another shape, dtype, device or layout than the parameter.
const void* locate_grad(Slot& slot);

// Whether a parameter's states are there, in the dtype, layout and device that the kernels need.
enum class Binding { kBound, kAbsent, kUnusable };

// Takes the states that the rule's form needs from the parameter's state dict.
Binding bind_states(Slot& slot, const RuleInfo& rule, uint8_t form, bool cycles_momentum,
                    py::handle states);

// Whether the parameter's state dict still holds the very tensors that were bound, and they the
// memory that the row has.
bool has_same_states(const Slot& slot, const TensorRow& row);

TensorRow make_row(const Slot& slot);

}  // namespace lrfast::bindings
