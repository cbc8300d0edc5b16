// One parameter as the engine holds it: its memory, its gradient and its states, the check of them
// that every step makes, and the layout that the kernels need.
#pragma once

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bindings/dict_version.h"
#include "bindings/rule_info.h"
#include "core/tables.h"

namespace lrfast::bindings {

// Where a tensor's elements were when it was last looked at. Its memory can be swapped under the
// same object: by .data =, by set_(), by resizing its storage.
struct StorageKey {
  const at::TensorImpl* impl = nullptr;
  const c10::StorageImpl* storage = nullptr;
  const void* data = nullptr;  // of the storage

  StorageKey() = default;
  // Of a parameter that is left out: sparse and packed ones have no storage to ask for.
  explicit StorageKey(const at::TensorImpl* without_storage) : impl(without_storage) {}
  explicit StorageKey(const at::Tensor& tensor)
      : impl(tensor.unsafeGetTensorImpl()),
        storage(impl->unsafe_storage().unsafeGetStorageImpl()),
        data(impl->unsafe_storage().data()) {}

  bool is_current() const {
    const c10::Storage& now = impl->unsafe_storage();
    return now.unsafeGetStorageImpl() == storage && now.data() == data;
  }
};

// What a step does besides the rule. Set by Python whenever the optimizer's attributes change.
struct EngineOptions {
  double max_grad_norm = 0.0;  // of all groups that have none of their own; 0: none
  bool skip_nonfinite = false;
  bool zero_grads = false;
  double ema_decay = -1.0;           // of the weights; negative: no average is kept
  int64_t ema_start = 0;             // steps before which the average is the weights
  bool ema_warmup = false;           // whether the decay grows from then on
  bool stochastic_rounding = false;  // of bfloat16 parameters and their bfloat16 states
  uint64_t seed = 0;
  bool codes = false;        // whether states may be in 8 bits
  int64_t master_bytes = 0;  // of master bits beside each element of a half parameter; 0: none
  int64_t telemetry = 0;     // steps that the ring of records holds; 0: none
  UpdateOptions update{};
};

// Whether a parameter's states are there, in the dtype, layout and device that the kernels need.
enum class Binding { kBound, kAbsent, kUnusable };

inline bool is_same(at::IntArrayRef dims, const int64_t* others) {
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] != others[i]) return false;
  }
  return true;
}

// autograd's fields of a tensor, or null: its accessors make two calls.
inline const torch::autograd::AutogradMeta* autograd_of(const at::TensorImpl& tensor) {
  return static_cast<torch::autograd::AutogradMeta*>(
      const_cast<at::TensorImpl&>(tensor).autograd_meta());
}

inline const at::TensorImpl* grad_impl(const at::TensorImpl& tensor) {
  const auto* meta = autograd_of(tensor);
  if (meta == nullptr || !meta->grad_.defined()) return nullptr;
  return meta->grad_.unsafeGetTensorImpl();
}

// What every step looks at comes first, and together. The functions that stand here are inlined
// into the step's loop and make no call if all is as it was, because a small tensor's update takes
// no longer than a few cache misses.
struct Parameter {
  py::object object;  // the parameter in param_groups; its identity is this one's
  at::Tensor tensor;  // what the kernels update: the parameter, or its local part
  StorageKey key;
  int64_t offset = 0;                   // in its storage
  caffe2::TypeMeta type;                // of the elements
  c10::SmallVector<int64_t, 4> layout;  // sizes, then strides
  int64_t elements = 0;                 // real numbers
  py::object state_dict;                // optimizer.state[parameter]
  uint64_t state_version = 0;           // of that dict when its entries were bound
  int32_t group = 0;
  int32_t device = 0;  // which of the engine's device plans
  int32_t row = 0;     // in that plan
  int32_t num_state_keys = 0;
  bool is_bound = false;      // states are known, the row is valid
  bool is_left_out = false;   // of all tables, until it has a gradient
  bool is_local = false;      // part of a DTensor: tensor is its local tensor
  bool is_counted = true;     // its squares, in the norms; see TensorRow
  bool starts_fresh = false;  // its states were absent when it got its first gradient
  bool uses_staged_grad = false;
  uint8_t form = 0;
  bool is_coded = false;       // its states are in 8 bits
  bool has_rare_keys = false;  // see rare_keys
  // Of states, average, count, product and largest, those that there are.
  StorageKey state_keys[kMaxStates + 4];

  at::Tensor staged_param;  // dense stand-in for a parameter with gaps in memory
  at::Tensor staged_grad;   // gradient in the parameter's layout, where it comes in another
  at::Tensor product;
  at::Tensor largest;
  at::Tensor count;
  at::Tensor average;
  at::Tensor direction;  // its place in a stack; see Directions
  std::vector<at::Tensor> states;
  std::vector<at::Tensor> scales;  // of states in 8 bits; otherwise empty
  at::Tensor master_bits;
  std::vector<StorageKey> rare_keys;  // of scales and master_bits, those that there are
  int32_t index = 0;                  // in the group
  uint32_t number = 0;                // among all parameters

  // Whether it still lies in memory as inspect() found it.
  bool is_unchanged() const {
    const at::TensorImpl& impl = *key.impl;
    const size_t dim = layout.size() / 2;
    return key.is_current() && impl.storage_offset() == offset && impl.dtype() == type &&
           impl.sizes().size() == dim && is_same(impl.sizes(), layout.data()) &&
           is_same(impl.strides(), layout.data() + dim);
  }

  // Whether its state dict still holds the very tensors that were bound, and they the memory that
  // the row has.
  bool has_same_states() const {
    if (state_dict && version_of(state_dict.ptr()) != state_version) return false;
    for (int32_t k = 0; k < num_state_keys; ++k) {
      if (!state_keys[k].is_current()) return false;
    }
    return !has_rare_keys || std::all_of(rare_keys.begin(), rare_keys.end(),
                                         [](const StorageKey& key) { return key.is_current(); });
  }

  // If it is_unchanged(): its gradient's memory, or null for none, if the kernels can take it as it
  // lies; false where locate_grad() must look closer.
  bool has_plain_grad(void** data) const {
    *data = nullptr;
    const at::TensorImpl* grad = grad_impl(*key.impl);
    if (grad == nullptr) return !is_local;
    const size_t dim = layout.size() / 2;
    const c10::DispatchKeySet lazy({c10::DispatchKey::Negative, c10::DispatchKey::Conjugate,
                                    c10::DispatchKey::Python, c10::DispatchKey::Functionalize});
    if (is_local || staged_param.defined() || grad->key_set().has_any(lazy) ||
        grad->layout() != at::kStrided || grad->dtype() != type ||
        grad->device() != tensor.device() || grad->sizes().size() != dim ||
        !is_same(grad->sizes(), layout.data()) || !is_same(grad->strides(), layout.data() + dim) ||
        elements == 0) {
      return false;
    }
    const auto bytes = static_cast<int64_t>(type.itemsize()) * grad->storage_offset();
    const void* storage = grad->unsafe_storage().data();
    *data = const_cast<char*>(static_cast<const char*>(storage) + bytes);
    return storage != nullptr;
  }

  std::string describe() const;
  // Raises for a parameter that no kernel can update, and notes how it lies in memory.
  void inspect();
  bool try_inspect();  // the same; false instead of raising
  void leave_out();
  bool has_grad() const;
  bool may_train() const;  // or has a gradient
  // Where the kernels find the gradient, laid out like the parameter; null for none. Raises for a
  // gradient of another shape, dtype, device or layout than the parameter.
  void* locate_grad();
  // The gradient itself, as torch holds it; undefined for none.
  at::Tensor grad() const;
  // Takes the states that the rule's form needs from the parameter's state dict.
  Binding bind_states(const RuleInfo& rule, uint8_t wanted_form, bool needs_product,
                      const EngineOptions& options, py::handle dict);

  // A row without states belongs to a parameter that is not updated.
  TensorRow make_row(const EngineOptions& options) const;
};

// Parameters ahead whose tensors are fetched while one is looked at: they lie anywhere in memory.
constexpr size_t kAhead = 6;

// Asks for the memory that a parameter's turn will need: first what the parameter points to, some
// turns later what that points to.
inline void prefetch(const std::vector<Parameter>& parameters, size_t next) {
  if (next + 2 * kAhead < parameters.size()) {
    const Parameter& ahead = parameters[next + 2 * kAhead];
    const char* impl = reinterpret_cast<const char*>(ahead.key.impl);
    for (int line = 0; line < 3; ++line) __builtin_prefetch(impl + 64 * line);
    __builtin_prefetch(ahead.state_dict.ptr());
    for (int32_t k = 0; k < ahead.num_state_keys; ++k) {
      __builtin_prefetch(ahead.state_keys[k].impl);
      __builtin_prefetch(ahead.state_keys[k].storage);
    }
    __builtin_prefetch(ahead.key.storage);
  }
  if (next + kAhead < parameters.size()) {
    const Parameter& ahead = parameters[next + kAhead];
    if (ahead.is_local || ahead.key.impl == nullptr) return;
    const at::TensorImpl* grad = ahead.tensor.unsafeGetTensorImpl()->grad().unsafeGetTensorImpl();
    const char* impl = reinterpret_cast<const char*>(grad);
    for (int line = 0; line < 3; ++line) __builtin_prefetch(impl + 64 * line);
  }
}

// Real numbers in a tensor.
inline int64_t elements_of(const at::Tensor& tensor) {
  return tensor.numel() * (tensor.is_complex() ? 2 : 1);
}

// The tensor behind a Python tensor: a DTensor's local part, otherwise itself.
at::Tensor local_tensor(py::handle tensor);

// Strides [dim] of the memory that the kernels walk: the parameter's own where it is dense.
std::vector<int64_t> layout_strides(const at::Tensor& param);

}  // namespace lrfast::bindings
