#include "bindings/param_groups.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <string_view>

namespace lrfast::bindings {
namespace {

constexpr int kMaxNorm = -1;     // stands for the group's max_grad_norm among its hyperparameters
constexpr int32_t kUnread = -2;  // stands for a group's schedule until the group is read again

py::object intern(const char* text) {
  return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(text));
}

// A one-element CPU tensor's value; of the usual types without the dispatcher.
double read_cpu_scalar(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return *tensor.const_data_ptr<float>();
    case at::kDouble:
      return *tensor.const_data_ptr<double>();
    default:
      return tensor.is_complex() || tensor.scalar_type() == at::kBool ? NAN
                                                                      : tensor.item().toDouble();
  }
}

// What torch's 1 - lr * weight_decay makes of a decoupled decay: it is taken in the type of a
// tensor lr, and a half one has no room for a small decay beside the 1.
double decay_beside(at::ScalarType type, double rate, double decay) {
  const auto round = [type](double x) {
    const auto number = static_cast<float>(x);
    return type == at::kHalf ? static_cast<double>(at::Half(number))
                             : static_cast<double>(at::BFloat16(number));
  };
  return rate == 0.0 ? decay : (1.0 - round(1.0 - round(rate * decay))) / rate;
}

bool is_device_scalar(py::handle value) {
  if (!THPVariable_Check(value.ptr())) return false;
  const at::Tensor& tensor = THPVariable_Unpack(value.ptr());
  return tensor.is_cuda() && tensor.numel() == 1;
}

// Numbers and bools cannot change; whatever else there is may.
bool is_fixed(py::handle value) {
  return value.is_none() || PyFloat_CheckExact(value.ptr()) || PyLong_CheckExact(value.ptr()) ||
         PyBool_Check(value.ptr());
}

}  // namespace

ParamGroups::ParamGroups(const RuleInfo& rule)
    : rule_(rule),
      rule_key_(intern("rule")),
      params_key_(intern("params")),
      frozen_key_(intern("frozen")),
      max_norm_key_(intern("max_grad_norm")) {
  for (const GroupKind& kind : rule_.kinds) {
    keys_.emplace_back();
    for (const HyperName& hyper : kind.hypers) {
      keys_.back().push_back(hyper.key ? intern(hyper.key) : py::none());
    }
  }
}

bool ParamGroups::are_held(const py::list& param_groups, const std::vector<Parameter>& parameters) {
  if (static_cast<size_t>(PyList_GET_SIZE(param_groups.ptr())) != held_.size()) return false;
  size_t next = 0;
  for (size_t g = 0; g < held_.size(); ++g) {
    HeldGroup& held = held_[g];
    PyObject* group = PyList_GET_ITEM(param_groups.ptr(), g);
    if (const uint64_t version = version_of(group); version != held.version) {
      PyObject* found = PyDict_GetItemWithError(group, params_key_.ptr());
      if (found == nullptr || !PyList_CheckExact(found)) return false;
      held.object = py::reinterpret_borrow<py::object>(group);  // it may be another dict
      held.params = py::reinterpret_borrow<py::object>(found);
      held.version = version;
      is_unread_ = true;
    }
    PyObject* params = held.params.ptr();
    const Py_ssize_t count = PyList_GET_SIZE(params);
    for (Py_ssize_t i = 0; i < count; ++i, ++next) {
      if (next >= parameters.size() || parameters[next].group != static_cast<int32_t>(g)) {
        return false;
      }
      if (PyList_GET_ITEM(params, i) != parameters[next].object.ptr()) return false;
    }
  }
  return next == parameters.size();
}

void ParamGroups::reset(const py::list& param_groups) {
  held_.clear();
  for (py::handle group : param_groups)
    held_.push_back({py::reinterpret_borrow<py::object>(group), {}});
  rows_.assign(held_.size(), GroupRow{});
  needs_.assign(held_.size(), GroupNeeds{});
  schedules_.resize(held_.size(), -1);
  device_hypers_.clear();
  unfixed_ = held_.size();
  is_unread_ = is_changed_ = true;
}

void ParamGroups::set_schedules(const std::vector<int32_t>& group_schedules) {
  schedules_ = group_schedules;
  for (GroupRow& row : rows_) row.schedule = kUnread;
  is_unread_ = true;
}

void ParamGroups::read(const py::list& param_groups, const ScheduleArrays& schedules) {
  if (!is_unread_ && unfixed_ == 0) return;
  is_unread_ = true;  // until all of them are read: one may hold a bad value
  for (size_t g = 0; g < rows_.size(); ++g) {
    PyObject* group = PyList_GET_ITEM(param_groups.ptr(), g);
    const bool is_rescheduled = rows_[g].schedule != schedules_[g];
    const bool is_read = held_[g].is_fixed && held_[g].read_version == version_of(group);
    if (!is_rescheduled && is_read) continue;
    GroupRow row = rows_[g];
    row.schedule = schedules_[g];
    if (!read_row(g, group, row) && !is_rescheduled) continue;
    rows_[g] = row;
    is_changed_ = true;
    const bool cycles = schedules.cycles_momentum(row.schedule);
    const uint8_t form = rule_.form(row.hypers, cycles);
    needs_[g] = {form, rule_.needs_product(form, cycles), row.frozen != 0};
  }
  clip_ = std::any_of(rows_.begin(), rows_.end(),
                      [](const GroupRow& group) { return group.max_norm > 0.0; });
  is_unread_ = false;
}

double ParamGroups::product_after(int32_t group, double count) const {
  TORCH_CHECK_VALUE(count >= 0.0 && count < 0x1p63,
                    "a parameter's count of updates must be 0 or more, got ", count);
  GroupRow row = rows_.at(group);
  for (const DeviceHyper& hyper : device_hypers_) {
    if (hyper.group == group) row.hypers[hyper.hyper] = hyper.value.item().toDouble();
  }
  return rule_.product_after(row.hypers, static_cast<int64_t>(count));
}

void ParamGroups::check(const std::string& rule, const py::list& groups) {
  ParamGroups reader(find_rule(rule));
  reader.reset(groups);
  for (size_t g = 0; g < groups.size(); ++g) {
    PyObject* group = PyList_GET_ITEM(groups.ptr(), g);
    if (!PyDict_Check(group)) {
      throw py::type_error("param_groups[" + std::to_string(g) + "] must be a dict, got " +
                           Py_TYPE(group)->tp_name);
    }
    GroupRow row{};
    reader.read_row(g, group, row);
  }
}

// Brings row up to date with param_groups[index] and returns whether anything changed. Leaves the
// row untouched if it raises.
bool ParamGroups::read_row(size_t index, PyObject* group, GroupRow& row) {
  HeldGroup& held = held_[index];
  const uint64_t version = version_of(group);
  GroupRow fresh = row;
  std::vector<DeviceHyper> on_device;
  bool all_fixed = true;
  held.kind = read_kind(index, group);
  const std::vector<HyperName>& names = hypers(index);
  for (size_t k = 0; k < names.size(); ++k) {
    if (names[k].key == nullptr) {
      const bool is_kind = static_cast<int>(k) == rule_.kind_hyper;
      fresh.hypers[k] = is_kind ? static_cast<double>(held.kind) : 0.0;
      continue;
    }
    const py::object value = value_of(index, group, k);
    // A tuple cannot change, a list of betas can.
    all_fixed = all_fixed && is_fixed(value) &&
                (names[k].index < 0 ||
                 PyTuple_CheckExact(PyDict_GetItemWithError(group, keys_[held.kind][k].ptr())));
    if (is_device_scalar(value)) {
      on_device.push_back({static_cast<int32_t>(index), static_cast<int32_t>(k),
                           THPVariable_Unpack(value.ptr()).detach()});
      fresh.hypers[k] = 0.0;
    } else {
      fresh.hypers[k] = to_double(index, static_cast<int>(k), value);
    }
  }
  round_decay(index, group, fresh.hypers);
  PyObject* frozen = PyDict_GetItemWithError(group, frozen_key_.ptr());
  const int is_frozen = frozen == nullptr ? 0 : PyObject_IsTrue(frozen);
  if (is_frozen < 0) throw py::error_already_set();
  fresh.frozen = is_frozen == 1;
  fresh.max_norm = read_max_norm(index, group);
  std::erase_if(device_hypers_, [&](const DeviceHyper& hyper) {
    return hyper.group == static_cast<int32_t>(index);
  });
  device_hypers_.insert(device_hypers_.end(), on_device.begin(), on_device.end());
  const bool changed = held.read_version == 0 || fresh != row;
  row = fresh;
  unfixed_ += static_cast<size_t>(held.is_fixed) - static_cast<size_t>(all_fixed);
  held.read_version = version;
  held.is_fixed = all_fixed;
  return changed;
}

void ParamGroups::round_decay(size_t index, PyObject* group, double* hypers) const {
  const py::object rate = value_of(index, group, 0);  // the rate comes first
  if (!THPVariable_Check(rate.ptr()) || is_device_scalar(rate)) return;
  const at::ScalarType type = THPVariable_Unpack(rate.ptr()).scalar_type();
  if (type != at::kHalf && type != at::kBFloat16) return;
  double* decay = nullptr;
  bool is_decoupled = rule_.kind_hyper >= 0 && hypers[rule_.kind_hyper] != 0.0;
  const std::vector<HyperName>& names = this->hypers(index);
  for (size_t k = 0; k < names.size(); ++k) {
    const std::string_view key = names[k].key ? names[k].key : "";
    if (key == "weight_decay") decay = &hypers[k];
    if (key == "decoupled_weight_decay") is_decoupled = hypers[k] != 0.0;
  }
  if (is_decoupled) *decay = decay_beside(type, hypers[0], *decay);
}

// Which of the rule's kinds a group is of.
size_t ParamGroups::read_kind(size_t index, PyObject* group) const {
  if (rule_.kinds.size() == 1) return 0;
  PyObject* value = PyDict_GetItemWithError(group, rule_key_.ptr());
  const std::string found =
      value != nullptr && PyUnicode_Check(value) ? py::cast<std::string>(value) : std::string();
  std::string known;
  for (size_t k = 0; k < rule_.kinds.size(); ++k) {
    if (found == rule_.kinds[k].name) return k;
    known += (k > 0 ? " or '" : "'") + rule_.kinds[k].name + "'";
  }
  throw py::value_error("param_groups[" + std::to_string(index) + "]['rule'] must be " + known +
                        ", got '" + found + "'");
}

py::object ParamGroups::value_of(size_t index, py::handle group, size_t hyper) const {
  PyObject* value = PyDict_GetItemWithError(group.ptr(), keys_[held_[index].kind][hyper].ptr());
  if (value == nullptr) {
    if (PyErr_Occurred()) throw py::error_already_set();
    throw py::key_error(describe(index, static_cast<int>(hyper)) + " is missing");
  }
  const HyperName& name = hypers(index)[hyper];
  const int item = name.index;
  if (item < 0) return py::reinterpret_borrow<py::object>(value);
  if (PyTuple_CheckExact(value) && item < PyTuple_GET_SIZE(value)) {
    return py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(value, item));
  }
  PyObject* found = PySequence_GetItem(value, item);
  if (found == nullptr) {
    PyErr_Clear();
    throw py::type_error(describe(index, static_cast<int>(hyper)) + " is missing: '" + name.key +
                         "' must hold a number for each, got " + Py_TYPE(value)->tp_name);
  }
  return py::reinterpret_steal<py::object>(found);
}

double ParamGroups::to_double(size_t index, int hyper, py::handle value) const {
  const Unset unset = hyper == kMaxNorm ? Unset::kNever : hypers(index)[hyper].unset;
  if (unset == Unset::kNone && value.is_none()) return kNoValue;
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
  if (unset == Unset::kInfinite && number == HUGE_VAL) return number;
  const bool may_be_negative = hyper > 0;
  if (!std::isfinite(number) || (!may_be_negative && number < 0.0)) {
    std::ostringstream message;
    message << describe(index, hyper) << " must be finite"
            << (may_be_negative ? "" : " and not negative") << ", got " << number;
    throw py::value_error(message.str());
  }
  return number;
}

// The group's own limit; 0 if it has none.
double ParamGroups::read_max_norm(size_t index, py::handle group) const {
  PyObject* value = PyDict_GetItemWithError(group.ptr(), max_norm_key_.ptr());
  if (value == nullptr || value == Py_None) return 0.0;
  const double norm = to_double(index, kMaxNorm, value);
  if (norm == 0.0) throw py::value_error(describe(index, kMaxNorm) + " must be above 0, got 0");
  return norm;
}

std::string ParamGroups::describe(size_t index, int hyper) const {
  const HyperName name = hyper == kMaxNorm ? HyperName{"max_grad_norm"} : hypers(index)[hyper];
  std::string text = "param_groups[" + std::to_string(index) + "]['" + name.key + "']";
  if (name.index >= 0) text += "[" + std::to_string(name.index) + "]";
  return text;
}

}  // namespace lrfast::bindings
