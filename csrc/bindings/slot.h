// One parameter as the engine holds it: whose it is, where its memory and its states are, and how
// it comes to be laid out as the kernels need it.
#pragma once

#include <torch/csrc/autograd/python_variable.h>

#include <string>
#include <vector>

#include "bindings/rule_info.h"
#include "core/tables.h"

namespace lrfast::bindings {

// Where a tensor's elements were when it was last looked at. Its memory can be swapped under the
// same object: by .data =, by set_(), by resizing its storage.
struct Place {
  const at::TensorImpl* impl = nullptr;
  const c10::StorageImpl* storage = nullptr;
  const void* storage_data = nullptr;

  Place() = default;
  explicit Place(const at::Tensor& tensor);
};

// What the kernels can make of states in other types than their parameter's.
struct StateOptions {
  bool stochastic_rounding = false;  // of bfloat16 parameters and their bfloat16 states
  bool keeps_average = false;        // of the weights
};

struct Slot {
  // What every step looks at comes first, and together.
  py::object object;  // the parameter in param_groups; its identity is the slot's
  at::Tensor param;   // what the kernels update: the parameter, or its local part
  Place param_place;
  int64_t param_offset = 0;             // in its storage
  caffe2::TypeMeta type;                // of the elements
  c10::SmallVector<int64_t, 4> layout;  // sizes, then strides
  int64_t elements = 0;                 // real numbers
  py::object state_dict;                // optimizer.state[parameter]
  uint64_t state_version = 0;           // of that dict when its entries were bound
  int32_t group = 0;
  int32_t device = 0;  // which of the engine's device plans
  int32_t row = 0;     // in that plan
  int32_t num_state_places = 0;
  bool is_bound = false;      // states are known, the row is valid
  bool is_local = false;      // part of a DTensor: param is its local tensor
  bool is_counted = true;     // its squares, in the norms; see TensorRow
  bool starts_fresh = false;  // its states were absent when it got its first gradient
  bool uses_staged_grad = false;
  uint8_t form = 0;
  Place state_places[kMaxStates + 3];  // states, average, count, product: those that there are

  at::Tensor staged_param;  // dense stand-in for a parameter with gaps in memory
  at::Tensor staged_grad;   // gradient in the parameter's layout, where it comes in another
  at::Tensor product;
  at::Tensor count;
  at::Tensor average;
  std::vector<at::Tensor> states;
  int32_t place = 0;    // in the group
  uint32_t number = 0;  // among all parameters

  std::string describe() const;
};

// The tensor behind a Python tensor: a DTensor's local part, otherwise itself.
at::Tensor local_tensor(py::handle tensor);

// Strides [dim] of the memory that the kernels walk: the parameter's own where it is dense.
std::vector<int64_t> layout_strides(const at::Tensor& param);

// Raises for a parameter that no kernel can update, and notes how it lies in memory.
void inspect_param(Slot& slot);

// Where the kernels find the gradient, laid out like the parameter; null for none. Raises for a
// gradient of another shape, dtype, device or layout than the parameter.
void* locate_grad(Slot& slot);

// The gradient itself, as torch holds it; undefined for none.
at::Tensor grad_of(const Slot& slot);

// Whether a parameter's states are there, in the dtype, layout and device that the kernels need.
enum class Binding { kBound, kAbsent, kUnusable };

// Takes the states that the rule's form needs from the parameter's state dict.
Binding bind_states(Slot& slot, const RuleInfo& rule, uint8_t form, bool cycles_momentum,
                    const StateOptions& options, py::handle states);

// A row without states belongs to a parameter that is not updated.
TensorRow make_row(const Slot& slot, const StateOptions& options);

}  // namespace lrfast::bindings
