// The look that every step takes at every parameter: is all as it was when the tables were made? It
// is inlined into one loop and makes no call where the answer is yes, as a small tensor's update
// takes no longer than a few cache misses.
#pragma once

#include <torch/csrc/autograd/variable.h>

#include "bindings/dict_version.h"
#include "bindings/slot.h"

namespace lrfast::bindings {

inline bool is_same(at::IntArrayRef dims, const int64_t* others) {
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] != others[i]) return false;
  }
  return true;
}

inline bool is_current(const Place& place) {
  const c10::Storage& now = place.impl->unsafe_storage();
  return now.unsafeGetStorageImpl() == place.storage && now.data() == place.storage_data;
}

// Whether the parameter still lies in memory as inspect_param() found it.
inline bool is_unchanged(const Slot& slot) {
  const at::TensorImpl& impl = *slot.param_place.impl;
  const size_t dim = slot.layout.size() / 2;
  return is_current(slot.param_place) && impl.storage_offset() == slot.param_offset &&
         impl.dtype() == slot.type && impl.sizes().size() == dim &&
         is_same(impl.sizes(), slot.layout.data()) &&
         is_same(impl.strides(), slot.layout.data() + dim);
}

// Whether the parameter's state dict still holds the very tensors that were bound, and they the
// memory that the row has.
inline bool has_same_states(const Slot& slot) {
  if (slot.state_dict && version_of(slot.state_dict.ptr()) != slot.state_version) return false;
  for (int32_t k = 0; k < slot.num_state_places; ++k) {
    if (!is_current(slot.state_places[k])) return false;
  }
  return true;
}

// A parameter's gradient: a field, where torch's accessors make two calls.
inline const at::TensorImpl* grad_impl(const at::TensorImpl& param) {
  const auto* meta = static_cast<torch::autograd::AutogradMeta*>(
      const_cast<at::TensorImpl&>(param).autograd_meta());
  if (meta == nullptr || !meta->grad_.defined()) return nullptr;
  return meta->grad_.unsafeGetTensorImpl();
}

// For a parameter that is_unchanged(): its gradient's memory, or null for none, if the kernels can
// take it as it lies; false where locate_grad() must look closer.
inline bool has_plain_grad(const Slot& slot, void** data) {
  *data = nullptr;
  const at::TensorImpl* grad = grad_impl(*slot.param_place.impl);
  if (grad == nullptr) return !slot.is_local;
  const size_t dim = slot.layout.size() / 2;
  const c10::DispatchKeySet lazy({c10::DispatchKey::Negative, c10::DispatchKey::Conjugate,
                                  c10::DispatchKey::Python, c10::DispatchKey::Functionalize});
  if (slot.is_local || slot.staged_param.defined() || grad->key_set().has_any(lazy) ||
      grad->layout() != at::kStrided || grad->dtype() != slot.type ||
      grad->device() != slot.param.device() || grad->sizes().size() != dim ||
      !is_same(grad->sizes(), slot.layout.data()) ||
      !is_same(grad->strides(), slot.layout.data() + dim) || slot.elements == 0) {
    return false;
  }
  const auto bytes = static_cast<int64_t>(slot.type.itemsize()) * grad->storage_offset();
  const void* storage = grad->unsafe_storage().data();
  *data = const_cast<char*>(static_cast<const char*>(storage) + bytes);
  return storage != nullptr;
}

}  // namespace lrfast::bindings
