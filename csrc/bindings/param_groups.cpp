#include "bindings/param_groups.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace lrfast::bindings {
namespace {

constexpr int kMaxNorm = -1;  // stands for the group's max_grad_norm among its hyperparameters

py::object intern(const char* text) {
  return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(text));
}

// A one-element CPU tensor's value, without the dispatcher (and so without a device read).
double read_cpu_scalar(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return *tensor.const_data_ptr<float>();
    case at::kDouble:
      return *tensor.const_data_ptr<double>();
    case at::kInt:
      return *tensor.const_data_ptr<int32_t>();
    case at::kLong:
      return static_cast<double>(*tensor.const_data_ptr<int64_t>());
    default:
      return NAN;
  }
}

bool is_device_scalar(py::handle value) {
  if (!THPVariable_Check(value.ptr())) return false;
  const at::Tensor& tensor = THPVariable_Unpack(value.ptr());
  return tensor.is_cuda() && tensor.numel() == 1;
}

// Numbers and bools cannot change; whatever else there is may.
bool is_fixed(py::handle value) {
  return PyFloat_CheckExact(value.ptr()) || PyLong_CheckExact(value.ptr()) ||
         PyBool_Check(value.ptr());
}

}  // namespace

void check_groups(const std::string& rule, const py::list& groups) {
  ParamGroupReader reader(find_rule(rule));
  reader.reset(groups.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    PyObject* group = PyList_GET_ITEM(groups.ptr(), g);
    if (!PyDict_Check(group)) {
      throw py::type_error("param_groups[" + std::to_string(g) + "] must be a dict, got " +
                           Py_TYPE(group)->tp_name);
    }
    GroupRow row{};
    reader.read(g, group, row);
  }
}

ParamGroupReader::ParamGroupReader(const RuleInfo& rule)
    : rule_(rule), frozen_key_(intern("frozen")), max_norm_key_(intern("max_grad_norm")) {
  for (const HyperName& hyper : rule_.hypers) keys_.push_back(intern(hyper.key));
}

void ParamGroupReader::reset(size_t count) {
  seen_.assign(count, Seen{});
  unfixed_ = count;
  device_hypers_.clear();
}

bool ParamGroupReader::read(size_t index, PyObject* group, GroupRow& row) {
  Seen& seen = seen_[index];
  const uint64_t version = version_of(group);
  GroupRow fresh = row;
  std::vector<DeviceHyper> on_device;
  bool all_fixed = true;
  for (size_t k = 0; k < rule_.hypers.size(); ++k) {
    const py::object value = value_of(index, group, k);
    // A tuple cannot change, a list of betas can.
    all_fixed = all_fixed && is_fixed(value) &&
                (rule_.hypers[k].index < 0 ||
                 PyTuple_CheckExact(PyDict_GetItemWithError(group, keys_[k].ptr())));
    if (is_device_scalar(value)) {
      on_device.push_back({static_cast<int32_t>(index), static_cast<int32_t>(k),
                           THPVariable_Unpack(value.ptr()).detach()});
      fresh.hypers[k] = 0.0;
    } else {
      fresh.hypers[k] = to_double(index, static_cast<int>(k), value);
    }
  }
  PyObject* frozen = PyDict_GetItemWithError(group, frozen_key_.ptr());
  const int is_frozen = frozen == nullptr ? 0 : PyObject_IsTrue(frozen);
  if (is_frozen < 0) throw py::error_already_set();
  fresh.frozen = is_frozen == 1;
  fresh.max_norm = read_max_norm(index, group);
  std::erase_if(device_hypers_, [&](const DeviceHyper& hyper) {
    return hyper.group == static_cast<int32_t>(index);
  });
  device_hypers_.insert(device_hypers_.end(), on_device.begin(), on_device.end());
  const bool changed = seen.version == 0 || fresh.frozen != row.frozen ||
                       fresh.max_norm != row.max_norm ||
                       !std::equal(fresh.hypers, fresh.hypers + kMaxHypers, row.hypers);
  row = fresh;
  unfixed_ += static_cast<size_t>(seen.is_fixed) - static_cast<size_t>(all_fixed);
  seen = {version, all_fixed};
  return changed;
}

py::object ParamGroupReader::value_of(size_t index, py::handle group, size_t hyper) const {
  PyObject* value = PyDict_GetItemWithError(group.ptr(), keys_[hyper].ptr());
  if (value == nullptr) {
    if (PyErr_Occurred()) throw py::error_already_set();
    throw py::key_error(describe(index, static_cast<int>(hyper)) + " is missing");
  }
  const int item = rule_.hypers[hyper].index;
  if (item < 0) return py::reinterpret_borrow<py::object>(value);
  if (PyTuple_CheckExact(value) && item < PyTuple_GET_SIZE(value)) {
    return py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(value, item));
  }
  PyObject* found = PySequence_GetItem(value, item);
  if (found == nullptr) {
    PyErr_Clear();
    throw py::type_error(describe(index, static_cast<int>(hyper)) + " is missing: '" +
                         rule_.hypers[hyper].key + "' must hold a number for each, got " +
                         Py_TYPE(value)->tp_name);
  }
  return py::reinterpret_steal<py::object>(found);
}

double ParamGroupReader::to_double(size_t index, int hyper, py::handle value) const {
  double number = NAN;
  if (THPVariable_Check(value.ptr())) {
    const at::Tensor& tensor = THPVariable_Unpack(value.ptr());
    if (!tensor.is_cpu() || tensor.layout() != at::kStrided || tensor.numel() != 1) {
      throw py::value_error(
          describe(index, hyper) +
          " must be a number or a tensor of one element on cpu or cuda, got one of " +
          std::to_string(tensor.numel()) + " elements on " + tensor.device().str());
    }
    number = read_cpu_scalar(tensor);
  } else {
    number = PyFloat_AsDouble(value.ptr());
    if (PyErr_Occurred()) {
      PyErr_Clear();
      throw py::type_error(describe(index, hyper) + " must be a number, got " +
                           Py_TYPE(value.ptr())->tp_name);
    }
  }
  const bool may_be_negative = hyper > 0;
  if (!std::isfinite(number) || (!may_be_negative && number < 0.0)) {
    std::ostringstream message;
    message << describe(index, hyper) << " must be finite"
            << (may_be_negative ? "" : " and not negative") << ", got " << number;
    throw py::value_error(message.str());
  }
  return number;
}

// The group's own limit; 0 where it has none.
double ParamGroupReader::read_max_norm(size_t index, py::handle group) const {
  PyObject* value = PyDict_GetItemWithError(group.ptr(), max_norm_key_.ptr());
  if (value == nullptr || value == Py_None) return 0.0;
  const double norm = to_double(index, kMaxNorm, value);
  if (norm == 0.0) throw py::value_error(describe(index, kMaxNorm) + " must be above 0, got 0");
  return norm;
}

std::string ParamGroupReader::describe(size_t index, int hyper) const {
  const HyperName name = hyper == kMaxNorm ? HyperName{"max_grad_norm"} : rule_.hypers[hyper];
  std::string text = "param_groups[" + std::to_string(index) + "]['" + name.key + "']";
  if (name.index >= 0) text += "[" + std::to_string(name.index) + "]";
  return text;
}

}  // namespace lrfast::bindings
