#include "bindings/slot.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <sstream>

#include "bindings/dict_version.h"

namespace lrfast::bindings {
namespace {

constexpr const char* kAverageName = "ema";  // in optimizer.state, beside torch's

bool is_half(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

// The type of the numbers that the kernels see: a complex tensor is twice as many real ones.
at::ScalarType real_type(const at::Tensor& tensor) {
  return c10::toRealValueType(tensor.scalar_type());
}

Kind find_kind(const Slot& slot, const StateOptions& options) {
  const at::ScalarType param = real_type(slot.param);
  const at::ScalarType states = slot.states.empty() ? param : real_type(slot.states[0]);
  switch (param) {
    case at::kFloat:
      return states == at::kBFloat16 ? Kind::kFloat32StatesBFloat16 : Kind::kFloat32;
    case at::kDouble:
      return Kind::kFloat64;
    case at::kBFloat16:
      if (options.stochastic_rounding) {
        return states == at::kFloat ? Kind::kStochasticBFloat16StatesFloat32
                                    : Kind::kStochasticBFloat16;
      }
      return states == at::kFloat ? Kind::kBFloat16StatesFloat32 : Kind::kBFloat16;
    case at::kHalf:
      return states == at::kFloat ? Kind::kFloat16StatesFloat32 : Kind::kFloat16;
    default:
      TORCH_CHECK_TYPE(
          false, slot.describe(),
          " must be float32, float64, bfloat16, float16, complex64 or complex128, got ",
          slot.param.scalar_type());
  }
}

// Types that states of a parameter may have.
bool is_state_type(at::ScalarType state, at::ScalarType param) {
  return state == param || (state == at::kFloat && is_half(param)) ||
         (state == at::kBFloat16 && param == at::kFloat);
}

// Averages are kept in the type that the arithmetic runs in.
at::ScalarType average_type(at::ScalarType param) { return is_half(param) ? at::kFloat : param; }

// The state of that name, or an undefined tensor where it is missing, None or no tensor.
at::Tensor find_state(py::handle states, const char* name) {
  if (!states) return {};
  PyObject* value = PyDict_GetItemString(states.ptr(), name);
  if (value == nullptr || !THPVariable_Check(value)) return {};
  return local_tensor(value);
}

bool is_usable_state(const at::Tensor& state, const Slot& slot) {
  return state.device() == slot.param.device() && state.sizes() == slot.param.sizes() &&
         state.strides() == at::IntArrayRef(layout_strides(slot.param));
}

bool is_usable_scalar(const at::Tensor& scalar, const Slot& slot, at::ScalarType dtype) {
  return scalar.defined() && scalar.device() == slot.param.device() &&
         scalar.scalar_type() == dtype && scalar.numel() == 1;
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

// The private count of a rule that torch keeps none for: whether the buffers have begun.
at::Tensor make_count(const Slot& slot) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(slot.param.device());
  if (!slot.count.defined())
    return slot.starts_fresh ? at::zeros({}, options) : at::ones({}, options);
  return slot.count.to(slot.param.device());  // elsewhere only if the parameter has moved
}

}  // namespace

Place::Place(const at::Tensor& tensor)
    : impl(tensor.unsafeGetTensorImpl()),
      storage(impl->unsafe_storage().unsafeGetStorageImpl()),
      storage_data(impl->unsafe_storage().data()) {}

std::string Slot::describe() const {
  std::ostringstream text;
  text << "parameter " << place << " of param_groups[" << group << "] (shape " << param.sizes()
       << ")";
  return text.str();
}

at::Tensor local_tensor(py::handle tensor) {
  const at::Tensor& whole = THPVariable_Unpack(tensor.ptr());
  if (THPVariable_CheckExact(tensor.ptr()) || !py::hasattr(tensor, "_local_tensor")) return whole;
  return THPVariable_Unpack(py::object(tensor.attr("_local_tensor")).ptr());
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
  TORCH_CHECK_TYPE(param.layout() == at::kStrided, slot.describe(), " must be strided, got ",
                   param.layout());
  TORCH_CHECK_VALUE(param.is_cpu() || param.is_cuda(), slot.describe(),
                    " must be on cpu or cuda, got ", param.device());
  TORCH_CHECK_VALUE(at::has_internal_overlap(param) != at::MemOverlap::Yes, slot.describe(),
                    " must not share memory among its own elements, got strides ", param.strides());
  TORCH_CHECK_TYPE(param.numel() == 0 || param.const_data_ptr() != nullptr, slot.describe(),
                   " must have memory of its own, as a tensor subclass may not");
  TORCH_CHECK_TYPE(!param.is_conj() && !param.is_neg(), slot.describe(),
                   " must not be a lazy conjugate or negation; call resolve_conj() and "
                   "resolve_neg() on it");
  find_kind(slot, {});
  const bool is_dense = param.is_non_overlapping_and_dense();
  slot.staged_param = is_dense ? at::Tensor() : at::empty(param.sizes(), param.options());
  slot.staged_grad.reset();
  slot.param_place = Place(param);
  slot.elements = param.numel() * (param.is_complex() ? 2 : 1);
  slot.param_offset = param.storage_offset();
  slot.type = param.dtype();
  slot.layout.assign(param.sizes().begin(), param.sizes().end());
  slot.layout.append(param.strides().begin(), param.strides().end());
}

at::Tensor grad_of(const Slot& slot) {
  if (!slot.is_local) return slot.param.unsafeGetTensorImpl()->grad();
  const py::object grad = slot.object.attr("grad");
  if (grad.is_none()) return {};
  TORCH_CHECK_TYPE(py::hasattr(grad, "_local_tensor"), "the gradient of ", slot.describe(),
                   " must be a DTensor, as the parameter is");
  TORCH_CHECK_VALUE(grad.attr("placements").equal(slot.object.attr("placements")),
                    "the gradient of ", slot.describe(), " must be placed as the parameter is");
  return local_tensor(grad);
}

void* locate_grad(Slot& slot) {
  at::Tensor local;
  if (slot.is_local) local = grad_of(slot);
  const at::Tensor& grad = slot.is_local ? local : slot.param.unsafeGetTensorImpl()->grad();
  slot.uses_staged_grad = false;
  if (!grad.defined()) return nullptr;
  const at::Tensor& param = slot.param;
  const bool is_plain = grad.layout() == at::kStrided && grad.sizes() == param.sizes() &&
                        grad.scalar_type() == param.scalar_type() &&
                        grad.device() == param.device();
  if (grad.numel() == 0 && is_plain) return &slot;  // not null, never read: it has no chunks
  const void* data = is_plain ? grad.const_data_ptr() : nullptr;
  if (data == nullptr) check_grad(slot, grad);
  // Strides of dimensions with one element mean nothing, so two contiguous tensors always fit.
  const bool is_alike = (grad.is_contiguous() && param.is_contiguous()) ||
                        (grad.strides() == param.strides() && !slot.staged_param.defined());
  // A lazy negation or conjugation is not in memory.
  if (is_alike && !grad.is_neg() && !grad.is_conj()) return const_cast<void*>(data);
  if (!slot.staged_grad.defined()) {
    slot.staged_grad = at::empty_strided(param.sizes(), layout_strides(param), param.options());
  }
  slot.staged_grad.copy_(grad);
  slot.uses_staged_grad = true;
  return slot.staged_grad.mutable_data_ptr();
}

Binding bind_states(Slot& slot, const RuleInfo& rule, uint8_t form, bool cycles_momentum,
                    const StateOptions& options, py::handle states) {
  const StateNames& names = rule.forms[form];
  const at::ScalarType param_type = real_type(slot.param);
  std::vector<at::Tensor> found;
  for (int k = 0; k < names.count; ++k) {
    at::Tensor state = find_state(states, names.names[k]);
    if (!state.defined()) return Binding::kAbsent;
    if (!is_usable_state(state, slot) || !is_state_type(real_type(state), param_type) ||
        (k > 0 && state.scalar_type() != found[0].scalar_type())) {
      return Binding::kUnusable;
    }
    found.push_back(std::move(state));
  }
  at::Tensor average;
  if (options.keeps_average) {
    average = find_state(states, kAverageName);
    if (!average.defined() || !is_usable_state(average, slot) ||
        real_type(average) != average_type(param_type)) {
      return Binding::kUnusable;
    }
  }
  const bool has_count = rule.count_name != nullptr;
  at::Tensor count = has_count ? find_state(states, rule.count_name) : make_count(slot);
  if (!is_usable_scalar(count, slot, at::kFloat)) return Binding::kUnusable;
  // Once kept, the product stays in use: after a cycle the power of the current beta1 is wrong.
  at::Tensor product = rule.product_name ? find_state(states, rule.product_name) : at::Tensor();
  if (!is_usable_scalar(product, slot, at::kDouble)) {
    if (product.defined() || rule.needs_product(cycles_momentum)) return Binding::kUnusable;
  }
  slot.states = std::move(found);
  slot.average = std::move(average);
  slot.count = std::move(count);
  slot.product = std::move(product);
  slot.num_state_places = 0;
  const auto note = [&](const at::Tensor& tensor) {
    if (tensor.defined()) slot.state_places[slot.num_state_places++] = Place(tensor);
  };
  for (const at::Tensor& state : slot.states) note(state);
  note(slot.average);
  note(slot.count);
  note(slot.product);
  slot.state_dict = py::reinterpret_borrow<py::object>(states);
  slot.state_version = states ? version_of(states.ptr()) : 0;
  slot.form = form;
  slot.is_bound = true;
  return Binding::kBound;
}

TensorRow make_row(const Slot& slot, const StateOptions& options) {
  TensorRow row{};
  const at::Tensor& target = slot.staged_param.defined() ? slot.staged_param : slot.param;
  row.param = target.mutable_data_ptr();
  for (size_t k = 0; k < slot.states.size(); ++k) row.states[k] = slot.states[k].mutable_data_ptr();
  if (slot.average.defined()) row.average = slot.average.mutable_data_ptr();
  if (slot.count.defined()) row.count = slot.count.mutable_data_ptr<float>();
  if (slot.product.defined()) row.product = slot.product.mutable_data_ptr<double>();
  row.numel = slot.elements;
  row.group = slot.group;
  row.number = slot.number;
  row.kind = find_kind(slot, options);
  row.form = slot.form;
  row.counted = slot.is_counted;
  return row;
}

}  // namespace lrfast::bindings
