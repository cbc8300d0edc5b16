#include "bindings/param_groups.h"

#include <cmath>
#include <sstream>

namespace lrfast::bindings {
namespace {

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

}  // namespace

ParamGroupReader::ParamGroupReader(const RuleInfo& rule)
    : rule_(rule), frozen_key_(intern("frozen")) {
  for (const HyperName& hyper : rule_.hypers) keys_.push_back(intern(hyper.key));
}

void ParamGroupReader::reset(size_t count) {
  seen_.assign(count, std::vector<py::object>(rule_.hypers.size() + 1));
}

bool ParamGroupReader::read(size_t index, py::handle group, GroupRow& row) {
  GroupRow fresh = row;
  std::vector<py::object> objects = {};
  bool changed = false;
  for (size_t k = 0; k < rule_.hypers.size(); ++k) {
    py::object value = value_of(index, group, k);
    const bool same = value.ptr() == seen_[index][k].ptr() && !THPVariable_Check(value.ptr());
    if (same) continue;
    const double number = to_double(index, k, value);
    changed = changed || number != fresh.hypers[k] || !seen_[index][k];
    fresh.hypers[k] = number;
    if (objects.empty()) objects = seen_[index];
    objects[k] = std::move(value);
  }
  PyObject* frozen = PyDict_GetItemWithError(group.ptr(), frozen_key_.ptr());
  if (frozen != seen_[index].back().ptr()) {
    fresh.frozen = frozen != nullptr && PyObject_IsTrue(frozen) == 1;
    changed = changed || fresh.frozen != row.frozen;
    if (objects.empty()) objects = seen_[index];
    objects.back() = py::reinterpret_borrow<py::object>(frozen);
  }
  if (!objects.empty()) seen_[index] = std::move(objects);
  row = fresh;
  return changed;
}

py::object ParamGroupReader::value_of(size_t index, py::handle group, size_t hyper) const {
  PyObject* value = PyDict_GetItemWithError(group.ptr(), keys_[hyper].ptr());
  if (value == nullptr) {
    if (PyErr_Occurred()) throw py::error_already_set();
    throw py::key_error(describe(index, hyper) + " is missing");
  }
  const int item = rule_.hypers[hyper].index;
  if (item < 0) return py::reinterpret_borrow<py::object>(value);
  if (PyTuple_CheckExact(value) && item < PyTuple_GET_SIZE(value)) {
    return py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(value, item));
  }
  PyObject* found = PySequence_GetItem(value, item);
  if (found == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(found);
}

double ParamGroupReader::to_double(size_t index, size_t hyper, py::handle value) const {
  double number = NAN;
  if (THPVariable_Check(value.ptr())) {
    const at::Tensor& tensor = THPVariable_Unpack(value.ptr());
    if (!tensor.is_cpu() || tensor.numel() != 1) {
      throw py::value_error(describe(index, hyper) +
                            " must be a number or a one-element CPU tensor, got a tensor of " +
                            std::to_string(tensor.numel()) + " elements on " +
                            tensor.device().str());
    }
    number = read_cpu_scalar(tensor);
  } else {
    number = PyFloat_AsDouble(value.ptr());
    if (PyErr_Occurred()) throw py::error_already_set();
  }
  const bool is_rate = hyper == 0;
  if (!std::isfinite(number) || (is_rate && number < 0.0)) {
    std::ostringstream message;
    message << describe(index, hyper) << " must be finite" << (is_rate ? " and not negative" : "")
            << ", got " << number;
    throw py::value_error(message.str());
  }
  return number;
}

std::string ParamGroupReader::describe(size_t index, size_t hyper) const {
  const HyperName& name = rule_.hypers[hyper];
  std::string text = "param_groups[" + std::to_string(index) + "]['" + name.key + "']";
  if (name.index >= 0) text += "[" + std::to_string(name.index) + "]";
  return text;
}

}  // namespace lrfast::bindings
