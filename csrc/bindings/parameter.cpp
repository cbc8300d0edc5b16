#include "bindings/parameter.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <sstream>

namespace lrfast::bindings {
namespace {

constexpr const char* kAverageName = "ema";  // in optimizer.state, beside torch's
constexpr const char* kMasterName = "master_bits";
// Behind the name of a state in 8 bits; torch's own optimizers find none of that name then.
constexpr const char* kCodes = "_codes";
constexpr const char* kScales = "_scales";

bool is_half(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

// The type of the numbers that the kernels see: a complex tensor is twice as many real ones.
at::ScalarType real_type(const at::Tensor& tensor) {
  return c10::toRealValueType(tensor.scalar_type());
}

DtypePair find_dtypes(const Parameter& param, const EngineOptions& options) {
  const at::ScalarType own = real_type(param.tensor);
  at::ScalarType states = param.states.empty() ? own : real_type(param.states[0]);
  if (states == at::kByte) states = at::kFloat;  // as the rule sees codes
  switch (own) {
    case at::kFloat:
      return states == at::kBFloat16 ? DtypePair::kFloat32StatesBFloat16 : DtypePair::kFloat32;
    case at::kDouble:
      return DtypePair::kFloat64;
    case at::kBFloat16:
      if (options.stochastic_rounding) {
        return states == at::kFloat ? DtypePair::kStochasticBFloat16StatesFloat32
                                    : DtypePair::kStochasticBFloat16;
      }
      return states == at::kFloat ? DtypePair::kBFloat16StatesFloat32 : DtypePair::kBFloat16;
    case at::kHalf:
      return states == at::kFloat ? DtypePair::kFloat16StatesFloat32 : DtypePair::kFloat16;
    default:
      TORCH_CHECK_TYPE(
          false, param.describe(),
          " must be float32, float64, bfloat16, float16, complex64 or complex128, got ",
          param.tensor.scalar_type());
  }
}

// Types that states of a parameter may have; bytes are codes, for 8 bits.
bool is_state_type(at::ScalarType state, at::ScalarType param) {
  if (state == at::kByte) return param == at::kFloat || is_half(param);
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

bool is_usable_state(const at::Tensor& state, const Parameter& param) {
  return state.device() == param.tensor.device() && state.sizes() == param.tensor.sizes() &&
         state.strides() == at::IntArrayRef(layout_strides(param.tensor));
}

bool is_usable_scales(const at::Tensor& scales, const Parameter& param) {
  return scales.defined() && scales.device() == param.tensor.device() &&
         scales.scalar_type() == at::kByte && scales.dim() == 1 && scales.is_contiguous() &&
         scales.numel() == count_scales(param.elements);
}

bool is_usable_scalar(const at::Tensor& scalar, const Parameter& param, at::ScalarType dtype) {
  return scalar.defined() && scalar.device() == param.tensor.device() &&
         scalar.scalar_type() == dtype && scalar.numel() == 1;
}

// Raises for a gradient that is not of its parameter's sort.
void check_grad(const Parameter& param, const at::Tensor& grad) {
  const at::Tensor& tensor = param.tensor;
  TORCH_CHECK(grad.layout() == at::kStrided, "sparse gradients are not supported: the gradient of ",
              param.describe(), " is ", grad.layout(),
              "; build its layer with sparse=False, or give it to torch.optim.SparseAdam");
  TORCH_CHECK_VALUE(grad.sizes() == tensor.sizes(), "the gradient of ", param.describe(),
                    " must have its shape, got ", grad.sizes());
  TORCH_CHECK_TYPE(grad.scalar_type() == tensor.scalar_type(), "the gradient of ", param.describe(),
                   " must be ", tensor.scalar_type(), ", got ", grad.scalar_type());
  TORCH_CHECK_VALUE(grad.device() == tensor.device(), "the gradient of ", param.describe(),
                    " must be on ", tensor.device(), ", got ", grad.device());
  TORCH_CHECK_TYPE(grad.const_data_ptr() != nullptr, "the gradient of ", param.describe(),
                   " must have memory of its own; tensor subclasses are not supported");
}

// The private count of a rule that torch keeps none for: whether the buffers have begun.
at::Tensor make_count(const Parameter& param) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(param.tensor.device());
  if (!param.count.defined())
    return param.starts_fresh ? at::zeros({}, options) : at::ones({}, options);
  return param.count.to(param.tensor.device());  // elsewhere only if the parameter has moved
}

}  // namespace

std::string Parameter::describe() const {
  std::ostringstream text;
  text << "parameter " << index << " of param_groups[" << group << "] (shape " << tensor.sizes()
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

void Parameter::inspect() {
  TORCH_CHECK_TYPE(tensor.layout() == at::kStrided, describe(), " must be strided, got ",
                   tensor.layout());
  TORCH_CHECK_VALUE(tensor.is_cpu() || tensor.is_cuda(), describe(),
                    " must be on cpu or cuda, got ", tensor.device());
  TORCH_CHECK_VALUE(at::has_internal_overlap(tensor) != at::MemOverlap::Yes, describe(),
                    " must not share memory among its own elements, got strides ",
                    tensor.strides());
  TORCH_CHECK_TYPE(tensor.numel() == 0 || tensor.const_data_ptr() != nullptr, describe(),
                   " must have memory of its own, as a tensor subclass may not");
  TORCH_CHECK_TYPE(!tensor.is_conj() && !tensor.is_neg(), describe(),
                   " must not be a lazy conjugate or negation; call resolve_conj() and "
                   "resolve_neg() on it");
  find_dtypes(*this, {});
  const bool is_dense = tensor.is_non_overlapping_and_dense();
  staged_param = is_dense ? at::Tensor() : at::empty(tensor.sizes(), tensor.options());
  staged_grad.reset();
  key = StorageKey(tensor);
  elements = elements_of(tensor);
  offset = tensor.storage_offset();
  type = tensor.dtype();
  layout.assign(tensor.sizes().begin(), tensor.sizes().end());
  layout.append(tensor.strides().begin(), tensor.strides().end());
}

// What raises may be a tensor subclass, in Python.
bool Parameter::try_inspect() {
  try {
    inspect();
    return true;
  } catch (const std::exception&) {
    PyErr_Clear();
    return false;
  }
}

void Parameter::leave_out() {
  is_left_out = true;
  key = StorageKey(tensor.unsafeGetTensorImpl());
  staged_param.reset();
  staged_grad.reset();
}

bool Parameter::has_grad() const {
  return grad_impl(*THPVariable_Unpack(object.ptr()).unsafeGetTensorImpl()) != nullptr;
}

bool Parameter::may_train() const {
  return THPVariable_Unpack(object.ptr()).requires_grad() || has_grad();
}

at::Tensor Parameter::grad() const {
  if (!is_local) return tensor.unsafeGetTensorImpl()->grad();
  const py::object grad = object.attr("grad");
  if (grad.is_none()) return {};
  TORCH_CHECK_TYPE(py::hasattr(grad, "_local_tensor"), "the gradient of ", describe(),
                   " must be a DTensor, as the parameter is");
  TORCH_CHECK_VALUE(grad.attr("placements").equal(object.attr("placements")), "the gradient of ",
                    describe(), " must be placed as the parameter is");
  return local_tensor(grad);
}

void* Parameter::locate_grad() {
  at::Tensor local;
  if (is_local) local = this->grad();
  const at::Tensor& grad = is_local ? local : tensor.unsafeGetTensorImpl()->grad();
  uses_staged_grad = false;
  if (!grad.defined()) return nullptr;
  const bool is_plain = grad.layout() == at::kStrided && grad.sizes() == tensor.sizes() &&
                        grad.scalar_type() == tensor.scalar_type() &&
                        grad.device() == tensor.device();
  if (grad.numel() == 0 && is_plain) return this;  // not null, never read: it has no chunks
  const void* data = is_plain ? grad.const_data_ptr() : nullptr;
  if (data == nullptr) check_grad(*this, grad);
  // Strides of dimensions with one element mean nothing, so two contiguous tensors always fit.
  const bool is_alike = (grad.is_contiguous() && tensor.is_contiguous()) ||
                        (grad.strides() == tensor.strides() && !staged_param.defined());
  // A lazy negation or conjugation is not in memory.
  if (is_alike && !grad.is_neg() && !grad.is_conj()) return const_cast<void*>(data);
  if (!staged_grad.defined()) {
    staged_grad = at::empty_strided(tensor.sizes(), layout_strides(tensor), tensor.options());
  }
  staged_grad.copy_(grad);
  uses_staged_grad = true;
  return staged_grad.mutable_data_ptr();
}

Binding Parameter::bind_states(const RuleInfo& rule, uint8_t wanted_form, bool needs_product,
                               const EngineOptions& options, py::handle dict) {
  const StateNames& names = rule.forms[wanted_form];
  const at::ScalarType param_type = real_type(tensor);
  std::vector<at::Tensor> found;
  std::vector<at::Tensor> found_scales;
  for (int k = 0; k < names.count; ++k) {
    at::Tensor state = find_state(dict, names.names[k]);
    const bool is_coded = !state.defined();
    if (is_coded) state = find_state(dict, (std::string(names.names[k]) + kCodes).c_str());
    if (!state.defined()) return Binding::kAbsent;
    if (!is_usable_state(state, *this) || !is_state_type(real_type(state), param_type) ||
        is_coded != (state.scalar_type() == at::kByte) ||
        (options.master_bytes > 0 && real_type(state) == at::kHalf) ||
        (k > 0 && state.scalar_type() != found[0].scalar_type())) {
      return Binding::kUnusable;
    }
    found.push_back(std::move(state));
    if (!is_coded) continue;
    at::Tensor scales = find_state(dict, (std::string(names.names[k]) + kScales).c_str());
    TORCH_CHECK_VALUE(!tensor.is_cuda() || rule.codes_on_cuda,
                      "state_dtype must be a dtype or None for the rule '", rule.name,
                      "' on cuda, got \"8bit\"");
    TORCH_CHECK_VALUE(!tensor.is_cuda() || names.count <= kMostCodedOnCuda,
                      "state_dtype must be a dtype or None for ", names.count,
                      " states on cuda, as amsgrad has, got \"8bit\"");
    if (!options.codes || !is_usable_scales(scales, *this) || names.kinds[k] == StateKind::kWide) {
      return Binding::kUnusable;
    }
    found_scales.push_back(std::move(scales));
  }
  at::Tensor found_average;
  if (options.ema_decay >= 0.0) {
    found_average = find_state(dict, kAverageName);
    if (!found_average.defined() || !is_usable_state(found_average, *this) ||
        real_type(found_average) != average_type(param_type)) {
      return Binding::kUnusable;
    }
  }
  at::Tensor found_master;
  if (options.master_bytes > 0 && is_half(param_type)) {
    found_master = find_state(dict, kMasterName);
    const at::ScalarType type = options.master_bytes == 1 ? at::kChar : at::kShort;
    if (!rule.keeps_masters || !found_master.defined() || found_master.scalar_type() != type ||
        !is_usable_state(found_master, *this)) {
      return Binding::kUnusable;
    }
  }
  const bool has_count = rule.count_name != nullptr;
  at::Tensor found_count = has_count ? find_state(dict, rule.count_name) : make_count(*this);
  if (!is_usable_scalar(found_count, *this, at::kFloat) &&
      !is_usable_scalar(found_count, *this, at::kDouble)) {
    return Binding::kUnusable;
  }
  // Once kept, the product stays in use: after a cycle the power of the current beta1 is wrong.
  at::Tensor found_product = rule.product_name ? find_state(dict, rule.product_name) : at::Tensor();
  if (!is_usable_scalar(found_product, *this, at::kDouble)) {
    if (found_product.defined() || needs_product) return Binding::kUnusable;
  }
  at::Tensor found_largest = rule.largest_name ? find_state(dict, rule.largest_name) : at::Tensor();
  if (rule.largest_name && !is_usable_scalar(found_largest, *this, at::kDouble)) {
    return Binding::kUnusable;
  }
  states = std::move(found);
  scales = std::move(found_scales);
  is_coded = !scales.empty();
  average = std::move(found_average);
  master_bits = std::move(found_master);
  count = std::move(found_count);
  product = std::move(found_product);
  largest = std::move(found_largest);
  num_state_keys = 0;
  const auto note = [&](const at::Tensor& state) {
    if (state.defined()) state_keys[num_state_keys++] = StorageKey(state);
  };
  for (const at::Tensor& state : states) note(state);
  note(average);
  note(count);
  note(product);
  note(largest);
  rare_keys.clear();
  for (const at::Tensor& each : scales) rare_keys.emplace_back(each);
  if (master_bits.defined()) rare_keys.emplace_back(master_bits);
  has_rare_keys = !rare_keys.empty();
  state_dict = py::reinterpret_borrow<py::object>(dict);
  state_version = dict ? version_of(dict.ptr()) : 0;
  form = wanted_form;
  is_bound = true;
  return Binding::kBound;
}

TensorRow Parameter::make_row(const EngineOptions& options) const {
  TensorRow row{};
  const at::Tensor& target = staged_param.defined() ? staged_param : tensor;
  row.param = target.mutable_data_ptr();
  for (size_t k = 0; k < states.size(); ++k) row.states[k] = states[k].mutable_data_ptr();
  for (size_t k = 0; k < scales.size(); ++k) row.scales[k] = scales[k].mutable_data_ptr<uint8_t>();
  row.coded = is_coded;
  if (master_bits.defined()) {
    row.master = static_cast<uint8_t>(master_bits.element_size());
    row.master_bits = master_bits.mutable_data_ptr();
  }
  if (direction.defined()) row.direction = direction.mutable_data_ptr();
  if (average.defined()) row.average = average.mutable_data_ptr();
  if (count.defined()) {
    row.count = count.mutable_data_ptr();
    row.counts_in_double = count.scalar_type() == at::kDouble;
  }
  if (product.defined()) row.product = product.mutable_data_ptr<double>();
  if (largest.defined()) row.largest = largest.mutable_data_ptr<double>();
  row.numel = elements;
  row.group = group;
  row.number = number;
  row.dtypes = find_dtypes(*this, options);
  row.form = form;
  row.counted = is_counted;
  return row;
}

}  // namespace lrfast::bindings
