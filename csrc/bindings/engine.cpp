#include "bindings/engine.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <unordered_map>

#include "bindings/device.h"

namespace lrfast::bindings {
namespace {

int64_t chunk_size(at::Device device) { return device.is_cpu() ? kCpuChunk : kCudaChunk; }

void append_chunks(const Slot& slot, DevicePlan& plan) {
  const int64_t size = chunk_size(plan.device);
  for (int64_t c = 0; c * size < slot.param.numel(); ++c) {
    plan.chunks.edit().push_back({slot.row, static_cast<int32_t>(c)});
  }
}

}  // namespace

Engine::Engine(const std::string& rule)
    : rule_(find_rule(rule)),
      reader_(rule_),
      params_key_(py::reinterpret_steal<py::object>(PyUnicode_InternFromString("params"))) {}

// Same groups, same parameters in them, on the same devices.
bool Engine::is_current(const py::list& param_groups) const {
  if (static_cast<size_t>(PyList_GET_SIZE(param_groups.ptr())) != group_objects_.size()) {
    return false;
  }
  size_t next = 0;
  for (size_t g = 0; g < group_objects_.size(); ++g) {
    PyObject* group = PyList_GET_ITEM(param_groups.ptr(), g);
    PyObject* params = PyDict_GetItemWithError(group, params_key_.ptr());
    if (params == nullptr || !PyList_CheckExact(params)) return false;
    const Py_ssize_t count = PyList_GET_SIZE(params);
    for (Py_ssize_t i = 0; i < count; ++i, ++next) {
      if (next >= slots_.size() || slots_[next].group != static_cast<int32_t>(g)) return false;
      const Slot& slot = slots_[next];
      if (PyList_GET_ITEM(params, i) != slot.object.ptr()) return false;
      if (slot.param.device() != plans_[slot.device].device) return false;
      if (slot.param.sizes() != at::IntArrayRef(slot.sizes)) return false;
    }
  }
  return next == slots_.size();
}

DevicePlan& Engine::plan_for(at::Device device, std::vector<DevicePlan>& plans) const {
  for (DevicePlan& plan : plans) {
    if (plan.device == device) return plan;
  }
  DevicePlan plan{device, {}, {}, {}, {}, {}, {}};
  for (const DevicePlan& previous : plans_) {
    if (previous.device == device) plan.clock = previous.clock;
  }
  if (!plan.clock.defined() && !plans_.empty()) {
    // All devices count the same steps.
    plan.clock = plans_.front().clock.to(device, /*non_blocking=*/true, /*copy=*/true);
  }
  if (!plan.clock.defined()) {
    plan.clock = at::zeros({2}, at::TensorOptions().dtype(at::kLong).device(device));
    plan.clock.narrow(0, 0, 1).fill_(initial_clock_);
  }
  plans.push_back(std::move(plan));
  return plans.back();
}

// Nothing of the engine changes until every parameter has been found fit.
void Engine::rebuild(const py::list& param_groups) {
  std::unordered_map<PyObject*, const Slot*> known;
  for (const Slot& slot : slots_) known.emplace(slot.object.ptr(), &slot);
  std::vector<py::object> group_objects;
  std::vector<Slot> slots;
  std::vector<DevicePlan> plans;
  for (py::handle group : param_groups) {
    const int32_t g = static_cast<int32_t>(group_objects.size());
    group_objects.push_back(py::reinterpret_borrow<py::object>(group));
    int32_t place = 0;
    for (py::handle param : group["params"]) {
      const auto old = known.find(param.ptr());
      Slot slot = old == known.end() ? Slot() : *old->second;
      slot.object = py::reinterpret_borrow<py::object>(param);
      slot.param = THPVariable_Unpack(param.ptr());
      slot.group = g;
      slot.place = place++;
      slot.is_bound = false;
      inspect_param(slot);
      DevicePlan& plan = plan_for(slot.param.device(), plans);
      slot.device = static_cast<int32_t>(&plan - plans.data());
      slot.row = static_cast<int32_t>(plan.tensors.rows().size());
      plan.tensors.edit().push_back({});
      plan.grads.edit().push_back(nullptr);
      append_chunks(slot, plan);
      slots.push_back(std::move(slot));
    }
  }
  for (DevicePlan& plan : plans) {
    plan.rates = at::zeros({static_cast<int64_t>(group_objects.size())},
                           at::TensorOptions().dtype(at::kDouble).device(plan.device));
  }
  slots_ = std::move(slots);
  plans_ = std::move(plans);
  group_objects_ = std::move(group_objects);
  groups_.assign(group_objects_.size(), GroupRow{});
  groups_changed_ = true;
  group_schedules_.resize(group_objects_.size(), -1);
  reader_.reset(group_objects_.size());
  rebuilds_ += 1;
}

void Engine::read_groups(const py::list& param_groups) {
  for (size_t g = 0; g < groups_.size(); ++g) {
    GroupRow row = groups_[g];
    row.schedule = group_schedules_[g];
    const bool read = reader_.read(g, PyList_GET_ITEM(param_groups.ptr(), g), row);
    if (!read && row.schedule == groups_[g].schedule) continue;
    groups_[g] = row;
    groups_changed_ = true;
  }
}

void Engine::write_groups() {
  if (!groups_changed_) return;
  for (DevicePlan& plan : plans_) plan.groups.edit() = groups_;
  groups_changed_ = false;
}

// Brings one parameter's row and gradient up to date. False where it has a gradient but not yet
// the states that it needs.
bool Engine::prepare(Slot& slot, const py::dict& state) {
  DevicePlan& plan = plans_[slot.device];
  const GroupRow& group = groups_[slot.group];
  if (!is_unchanged(slot)) {
    inspect_param(slot);
    slot.is_bound = false;
  }
  const void* grad = group.frozen ? nullptr : locate_grad(slot);
  if (grad != nullptr) {
    const bool cycles = schedules_.cycles_momentum(group.schedule);
    const uint8_t form = rule_.form(group.hypers, cycles);
    const bool lacks_product = cycles && rule_.product_name != nullptr && !slot.product.defined();
    if (!slot.is_bound || form != slot.form || lacks_product ||
        !has_same_states(slot, plan.tensors.rows()[slot.row])) {
      PyObject* states = PyDict_GetItemWithError(state.ptr(), slot.object.ptr());
      const Binding binding = bind_states(slot, rule_, form, cycles, states);
      if (binding == Binding::kAbsent) {
        slot.starts_fresh = true;
        slot.count.reset();
      }
      if (binding != Binding::kBound) return false;
      plan.tensors.edit()[slot.row] = make_row(slot);
    }
    if (slot.staged_param.defined()) slot.staged_param.copy_(slot.param.detach());
  }
  if (plan.grads.rows()[slot.row] != grad) plan.grads.edit()[slot.row] = grad;
  return true;
}

py::list Engine::step(const py::list& param_groups, const py::dict& state) {
  const at::NoGradGuard no_grad;
  if (!is_current(param_groups)) rebuild(param_groups);
  if (!state.is(state_object_) || PyDict_Size(state.ptr()) != state_size_) {
    for (Slot& slot : slots_) slot.is_bound = false;
    state_object_ = state;
    state_size_ = PyDict_Size(state.ptr());
  }
  read_groups(param_groups);
  py::list missing;
  for (Slot& slot : slots_) {
    if (!prepare(slot, state)) missing.append(py::make_tuple(slot.group, slot.object));
  }
  if (missing.size() == 0) launch();
  return missing;
}

void Engine::launch() {
  write_groups();
  for (DevicePlan& plan : plans_) {
    StepTables tables{};
    tables.tensors = plan.tensors.on(plan.device);
    tables.grads = plan.grads.on(plan.device);
    tables.groups = plan.groups.on(plan.device);
    tables.chunks = plan.chunks.on(plan.device);
    tables.schedules = schedules_.on(plan.device);
    tables.clock = static_cast<Clock*>(plan.clock.mutable_data_ptr());
    tables.rates = plan.rates.mutable_data_ptr<double>();
    const at::Tensor flag = stop_flag_ ? stop_flag_->to(plan.device, true) : at::Tensor();
    tables.stop = flag.defined() ? flag.const_data_ptr<double>() : nullptr;
    tables.num_chunks = static_cast<int64_t>(plan.chunks.rows().size());
    tables.chunk_size = chunk_size(plan.device);
    tables.num_tensors = static_cast<int32_t>(plan.tensors.rows().size());
    tables.num_groups = static_cast<int32_t>(groups_.size());
    const py::gil_scoped_release release;
    bindings::step(rule_.place, tables, plan.device);
  }
  for (Slot& slot : slots_) {
    if (plans_[slot.device].grads.rows()[slot.row] == nullptr) continue;
    if (slot.staged_param.defined()) slot.param.detach().copy_(slot.staged_param);
    // Lets autograd notice a backward pass through values that are gone.
    if (!slot.param.is_inference()) slot.param.unsafeGetTensorImpl()->bump_version();
  }
}

void Engine::set_schedules(const std::vector<ScheduleTuple>& schedules,
                           const std::vector<int32_t>& group_schedules) {
  for (const int32_t schedule : group_schedules) {
    TORCH_CHECK_INDEX(schedule >= -1 && schedule < static_cast<int64_t>(schedules.size()),
                      "group_schedules must be -1 or an index into ", schedules.size(),
                      " schedules, got ", schedule);
  }
  schedules_.assign(schedules);
  group_schedules_ = group_schedules;
  set_clock(0);
}

void Engine::watch(std::optional<at::Tensor> flag) {
  TORCH_CHECK_TYPE(!flag || (flag->scalar_type() == at::kDouble && flag->numel() == 1),
                   "flag must be one float64, got ", flag ? flag->numel() : 0, " elements");
  stop_flag_ = std::move(flag);
}

py::dict Engine::state_names(int32_t group) const {
  const GroupRow& row = groups_.at(group);
  const bool cycles = schedules_.cycles_momentum(row.schedule);
  const StateNames& names = rule_.forms[rule_.form(row.hypers, cycles)];
  py::list tensors;
  for (int k = 0; k < names.count; ++k) tensors.append(names.names[k]);
  py::dict result;
  result["tensors"] = tensors;
  result["count"] = rule_.count_name ? py::object(py::str(rule_.count_name)) : py::none();
  result["product"] = rule_.product_name ? py::object(py::str(rule_.product_name)) : py::none();
  result["cycles_momentum"] = cycles && rule_.product_name != nullptr;
  return result;
}

std::vector<at::Tensor> Engine::clocks() const {
  std::vector<at::Tensor> views;
  for (const DevicePlan& plan : plans_) views.push_back(plan.clock.narrow(0, 0, 1));
  return views;
}

void Engine::set_clock(int64_t applied) {
  initial_clock_ = applied;
  for (at::Tensor& view : clocks()) view.fill_(applied);
}

std::vector<at::Tensor> Engine::rates() const {
  std::vector<at::Tensor> all;
  for (const DevicePlan& plan : plans_) all.push_back(plan.rates);
  return all;
}

}  // namespace lrfast::bindings
