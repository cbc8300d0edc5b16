#include "bindings/slot.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <sstream>

namespace lrfast::bindings {
namespace {

Kind find_kind(const Slot& slot) {
  const at::ScalarType param = slot.param.scalar_type();
  const bool wide_states = !slot.states.empty() && slot.states[0].scalar_type() == at::kFloat;
  switch (param) {
    case at::kFloat:
      return Kind::kFloat32;
    case at::kDouble:
      return Kind::kFloat64;
    case at::kBFloat16:
      return wide_states ? Kind::kBFloat16StatesFloat32 : Kind::kBFloat16;
    case at::kHalf:
      return wide_states ? Kind::kFloat16StatesFloat32 : Kind::kFloat16;
    default:
      TORCH_CHECK_TYPE(false, slot.describe(),
                       " must be float32, float64, bfloat16 or float16, got ", param);
  }
}

// The state of that name, or an undefined tensor where it is missing, None or no tensor.
at::Tensor find_state(py::handle states, const char* name) {
  if (!states) return {};
  PyObject* value = PyDict_GetItemString(states.ptr(), name);
  if (value == nullptr || !THPVariable_Check(value)) return {};
  return THPVariable_Unpack(value);
}

bool is_usable_state(const at::Tensor& state, const Slot& slot, at::ScalarType dtype) {
  return state.device() == slot.param.device() && state.scalar_type() == dtype &&
         state.sizes() == slot.param.sizes() &&
         state.strides() == at::IntArrayRef(layout_strides(slot.param));
}

bool is_usable_scalar(const at::Tensor& scalar, const Slot& slot, at::ScalarType dtype) {
  return scalar.defined() && scalar.device() == slot.param.device() &&
         scalar.scalar_type() == dtype && scalar.numel() == 1;
}

void note_entry(Slot& slot, const char* name) {
  auto key = py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name));
  const PyObject* value = PyDict_GetItemWithError(slot.state_dict.ptr(), key.ptr());
  slot.entries.emplace_back(std::move(key), value);
}

// Raises for a gradient that is not of its parameter's kind.
void check_grad(const Slot& slot, const at::Tensor& grad) {
  const at::Tensor& param = slot.param;
  TORCH_CHECK(grad.layout() == at::kStrided, "sparse gradients are not supported: the gradient of ",
              slot.describe(), " is ", grad.layout(),
              "; build its layer with sparse=False, or give it to torch.optim.SparseAdam");
  TORCH_CHECK_VALUE(grad.sizes() == param.sizes(), "the gradient of ", slot.describe(),
                    " must have its shape, got ", grad.sizes());
  TORCH_CHECK_TYPE(grad.scalar_type() == param.scalar_type(), "the gradient of ", slot.describe(),
                   " must be ", param.scalar_type(), ", got ", grad.scalar_type());
  TORCH_CHECK_VALUE(grad.device() == param.device(), "the gradient of ", slot.describe(),
                    " must be on ", param.device(), ", got ", grad.device());
  TORCH_CHECK_TYPE(grad.const_data_ptr() != nullptr, "the gradient of ", slot.describe(),
                   " must have memory of its own; tensor subclasses are not supported");
}

}  // namespace

std::string Slot::describe() const {
  std::ostringstream text;
  text << "parameter " << place << " of param_groups[" << group << "] (shape " << param.sizes()
       << ")";
  return text.str();
}

std::vector<int64_t> layout_strides(const at::Tensor& param) {
  if (param.is_non_overlapping_and_dense()) return param.strides().vec();
  std::vector<int64_t> strides(param.dim());
  int64_t stride = 1;
  for (int64_t d = param.dim() - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= std::max<int64_t>(param.size(d), 1);
  }
  return strides;
}

void inspect_param(Slot& slot) {
  const at::Tensor& param = slot.param;
  TORCH_CHECK_TYPE(param.layout() == at::kStrided && !param.is_complex(), slot.describe(),
                   " must be a strided real tensor, got ", param.layout(), " ",
                   param.scalar_type());
  TORCH_CHECK_VALUE(param.is_cpu() || param.is_cuda(), slot.describe(),
                    " must be on cpu or cuda, got ", param.device());
  TORCH_CHECK_VALUE(at::has_internal_overlap(param) != at::MemOverlap::Yes, slot.describe(),
                    " must not share memory among its own elements, got strides ", param.strides());
  TORCH_CHECK_TYPE(param.numel() == 0 || param.const_data_ptr() != nullptr, slot.describe(),
                   " must have memory of its own; subclasses such as DTensor are not supported");
  find_kind(slot);
  const bool is_dense = param.is_non_overlapping_and_dense();
  slot.staged_param = is_dense ? at::Tensor() : at::empty(param.sizes(), param.options());
  slot.staged_grad.reset();
  slot.param_data = param.const_data_ptr();
  slot.dtype = param.scalar_type();
  slot.sizes = param.sizes().vec();
  slot.strides = param.strides().vec();
}

bool is_unchanged(const Slot& slot) {
  const at::Tensor& param = slot.param;
  return param.const_data_ptr() == slot.param_data && param.scalar_type() == slot.dtype &&
         param.sizes() == at::IntArrayRef(slot.sizes) &&
         param.strides() == at::IntArrayRef(slot.strides);
}

const void* locate_grad(Slot& slot) {
  const at::Tensor& grad = slot.param.unsafeGetTensorImpl()->grad();
  if (!grad.defined()) return nullptr;
  const at::Tensor& param = slot.param;
  const bool is_plain = grad.layout() == at::kStrided && grad.sizes() == param.sizes() &&
                        grad.scalar_type() == param.scalar_type() &&
                        grad.device() == param.device();
  if (grad.numel() == 0 && is_plain) return &slot;  // not null, never read: it has no chunks
  if (!is_plain || grad.const_data_ptr() == nullptr) check_grad(slot, grad);
  // Strides of dimensions with one element mean nothing, so two contiguous tensors always fit.
  const bool is_alike = (grad.is_contiguous() && param.is_contiguous()) ||
                        (grad.strides() == param.strides() && !slot.staged_param.defined());
  const bool fits = is_alike && !grad.is_neg();  // a lazy negation is not in memory
  if (fits) return grad.const_data_ptr();
  if (!slot.staged_grad.defined()) {
    slot.staged_grad = at::empty_strided(param.sizes(), layout_strides(param), param.options());
  }
  slot.staged_grad.copy_(grad);
  return slot.staged_grad.const_data_ptr();
}

Binding bind_states(Slot& slot, const RuleInfo& rule, uint8_t form, bool cycles_momentum,
                    py::handle states) {
  const StateNames& names = rule.forms[form];
  std::vector<at::Tensor> found;
  for (int k = 0; k < names.count; ++k) {
    at::Tensor state = find_state(states, names.names[k]);
    if (!state.defined()) return Binding::kAbsent;
    const at::ScalarType param_type = slot.param.scalar_type();
    const bool is_half = param_type == at::kHalf || param_type == at::kBFloat16;
    const bool is_wide = is_half && state.scalar_type() == at::kFloat;
    if (!is_usable_state(state, slot, is_wide ? at::kFloat : param_type)) return Binding::kUnusable;
    if (k > 0 && state.scalar_type() != found[0].scalar_type()) return Binding::kUnusable;
    found.push_back(std::move(state));
  }
  at::Tensor count = slot.count;
  if (rule.count_name != nullptr) {
    count = find_state(states, rule.count_name);
    if (!is_usable_scalar(count, slot, at::kFloat)) return Binding::kUnusable;
  } else if (!count.defined()) {
    const auto options = slot.param.options().dtype(at::kFloat);
    count = slot.starts_fresh ? at::zeros({}, options) : at::ones({}, options);
  } else if (count.device() != slot.param.device()) {
    count = count.to(slot.param.device());  // the parameter has moved
  }
  // Once kept, the product stays in use: after a cycle the power of the current beta1 is wrong.
  at::Tensor product = rule.product_name ? find_state(states, rule.product_name) : at::Tensor();
  if (!is_usable_scalar(product, slot, at::kDouble)) {
    if (product.defined() || (cycles_momentum && rule.product_name)) return Binding::kUnusable;
  }
  slot.state_dict = py::reinterpret_borrow<py::object>(states);
  slot.entries.clear();
  for (int k = 0; k < names.count; ++k) note_entry(slot, names.names[k]);
  if (rule.count_name) note_entry(slot, rule.count_name);
  if (product.defined()) note_entry(slot, rule.product_name);
  slot.states = std::move(found);
  slot.count = std::move(count);
  slot.product = std::move(product);
  slot.form = form;
  slot.is_bound = true;
  return Binding::kBound;
}

bool has_same_states(const Slot& slot, const TensorRow& row) {
  for (size_t k = 0; k < slot.states.size(); ++k) {
    if (slot.states[k].const_data_ptr() != row.states[k]) return false;
  }
  for (const auto& [key, value] : slot.entries) {
    if (PyDict_GetItemWithError(slot.state_dict.ptr(), key.ptr()) != value) return false;
  }
  return true;
}

TensorRow make_row(const Slot& slot) {
  TensorRow row{};
  const at::Tensor& target = slot.staged_param.defined() ? slot.staged_param : slot.param;
  row.param = target.mutable_data_ptr();
  for (size_t k = 0; k < slot.states.size(); ++k) row.states[k] = slot.states[k].mutable_data_ptr();
  row.count = slot.count.mutable_data_ptr<float>();
  if (slot.product.defined()) row.momentum_product = slot.product.mutable_data_ptr<double>();
  row.numel = slot.param.numel();
  row.group = slot.group;
  row.kind = find_kind(slot);
  row.form = slot.form;
  return row;
}

}  // namespace lrfast::bindings
