#include "bindings/engine.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <unordered_map>

#include "bindings/device.h"
#include "bindings/dict_version.h"
#include "bindings/look.h"

namespace lrfast::bindings {
namespace {

// Slots ahead whose tensors are fetched while one is looked at: they lie anywhere in memory.
constexpr size_t kAhead = 6;

int64_t elements_of(const at::Tensor& param) {
  return param.numel() * (param.is_complex() ? 2 : 1);
}

void append_chunks(const Slot& slot, DevicePlan& plan) {
  const int64_t size = chunk_size(plan.device);
  const int64_t numel = elements_of(slot.param);
  for (int64_t c = 0; c * size < numel; ++c) {
    plan.chunks.edit().push_back({slot.row, static_cast<int32_t>(c)});
  }
}

// Closes the groups before this one in the table of where each group's chunks begin.
void begin_group(size_t group, DevicePlan& plan) {
  const int64_t chunks = static_cast<int64_t>(plan.chunks.rows().size());
  if (plan.group_chunks.rows().size() <= group) plan.group_chunks.edit().resize(group + 1, chunks);
}

}  // namespace

Engine::Engine(const std::string& rule, py::object find_shards)
    : rule_(find_rule(rule)),
      find_shards_(std::move(find_shards)),
      reader_(rule_),
      params_key_(py::reinterpret_steal<py::object>(PyUnicode_InternFromString("params"))) {}

// ---- what the optimizer holds ----------------------------------------------------------------

// Same groups, same parameters in them, on the same devices.
bool Engine::is_current(const py::list& param_groups) {
  if (static_cast<size_t>(PyList_GET_SIZE(param_groups.ptr())) != held_groups_.size()) {
    return false;
  }
  size_t next = 0;
  for (size_t g = 0; g < held_groups_.size(); ++g) {
    HeldGroup& held = held_groups_[g];
    PyObject* group = PyList_GET_ITEM(param_groups.ptr(), g);
    if (const uint64_t version = version_of(group); version != held.version) {
      PyObject* found = PyDict_GetItemWithError(group, params_key_.ptr());
      if (found == nullptr || !PyList_CheckExact(found)) return false;
      held.params = py::reinterpret_borrow<py::object>(found);
      held.version = version;
      groups_unread_ = true;
    }
    PyObject* params = held.params.ptr();
    const Py_ssize_t count = PyList_GET_SIZE(params);
    for (Py_ssize_t i = 0; i < count; ++i, ++next) {
      if (next >= slots_.size() || slots_[next].group != static_cast<int32_t>(g)) return false;
      if (PyList_GET_ITEM(params, i) != slots_[next].object.ptr()) return false;
    }
  }
  return next == slots_.size();
}

DevicePlan& Engine::plan_for(at::Device device, std::vector<DevicePlan>& plans) const {
  for (DevicePlan& plan : plans) {
    if (plan.device == device) return plan;
  }
  DevicePlan plan(device);
  for (const DevicePlan& previous : plans_) {
    if (previous.device == device) plan.clock = previous.clock;
  }
  if (!plan.clock.defined() && !plans_.empty()) {
    // All devices count the same steps.
    plan.clock = plans_.front().clock.to(device, /*non_blocking=*/true, /*copy=*/true);
  }
  if (!plan.clock.defined()) {
    plan.clock = at::zeros({3}, at::TensorOptions().dtype(at::kLong).device(device));
    for (int64_t i = 0; i < 2; ++i) plan.clock.narrow(0, i, 1).fill_(initial_clock_[i]);
  }
  plans.push_back(std::move(plan));
  return plans.back();
}

// Nothing of the engine changes until every parameter has been found fit.
void Engine::rebuild(const py::list& param_groups) {
  std::unordered_map<PyObject*, const Slot*> known;
  for (const Slot& slot : slots_) known.emplace(slot.object.ptr(), &slot);
  const py::object shards = find_shards_(param_groups);
  std::vector<HeldGroup> held_groups;
  std::vector<Slot> slots;
  std::vector<DevicePlan> plans;
  for (py::handle group : param_groups) {
    const int32_t g = static_cast<int32_t>(held_groups.size());
    held_groups.push_back({py::reinterpret_borrow<py::object>(group), {}});
    int32_t place = 0;
    for (py::handle param : group["params"]) {
      const auto old = known.find(param.ptr());
      Slot slot = old == known.end() ? Slot() : *old->second;
      slot.object = py::reinterpret_borrow<py::object>(param);
      slot.param = local_tensor(param);
      slot.is_local = !slot.param.is_same(THPVariable_Unpack(param.ptr()));
      slot.is_counted = shards.is_none() || shards.attr("counts")(param).cast<bool>();
      slot.group = g;
      slot.place = place++;
      slot.is_bound = false;
      inspect_param(slot);
      TORCH_CHECK(
          !is_capturing(slot.param.device()),
          "the optimizer has no tables for its parameters yet, and cannot make them while a "
          "CUDA graph is captured: make a step before, or use lrfast.capture");
      DevicePlan& plan = plan_for(slot.param.device(), plans);
      slot.device = static_cast<int32_t>(&plan - plans.data());
      slot.row = static_cast<int32_t>(plan.tensors.rows().size());
      slot.number = static_cast<uint32_t>(slots.size());
      plan.tensors.edit().push_back(make_row(slot, {}));
      plan.grads.edit().push_back(nullptr);
      plan.elements += slot.elements;
      begin_group(g, plan);
      append_chunks(slot, plan);
      slots.push_back(std::move(slot));
    }
  }
  for (DevicePlan& plan : plans) {
    begin_group(held_groups.size(), plan);
    plan.rates = at::zeros({static_cast<int64_t>(held_groups.size())},
                           at::TensorOptions().dtype(at::kDouble).device(plan.device));
    plan.values = at::empty({static_cast<int64_t>(held_groups.size() * sizeof(ScheduleValues))},
                            at::TensorOptions().dtype(at::kByte).device(plan.device));
  }
  shards_ = shards;
  slots_ = std::move(slots);
  plans_ = std::move(plans);
  held_groups_ = std::move(held_groups);
  groups_.assign(held_groups_.size(), GroupRow{});
  needs_.assign(held_groups_.size(), Needs{});
  groups_unread_ = groups_changed_ = true;
  group_schedules_.resize(held_groups_.size(), -1);
  reader_.reset(held_groups_.size());
  rebuilds_ += 1;
}

void Engine::read_groups(const py::list& param_groups) {
  if (!groups_unread_ && reader_.all_fixed()) return;
  groups_unread_ = true;  // until all of them are read: one may hold a bad value
  for (size_t g = 0; g < groups_.size(); ++g) {
    PyObject* group = PyList_GET_ITEM(param_groups.ptr(), g);
    const bool is_rescheduled = groups_[g].schedule != group_schedules_[g];
    if (!is_rescheduled && reader_.is_unchanged(g, group)) continue;
    GroupRow row = groups_[g];
    row.schedule = group_schedules_[g];
    if (!reader_.read(g, group, row) && !is_rescheduled) continue;
    groups_[g] = row;
    groups_changed_ = true;
    const bool cycles = schedules_.cycles_momentum(row.schedule);
    needs_[g] = {rule_.form(row.hypers, cycles), rule_.needs_product(cycles), row.frozen != 0};
  }
  groups_clip_ = std::any_of(groups_.begin(), groups_.end(),
                             [](const GroupRow& group) { return group.max_norm > 0.0; });
  groups_unread_ = false;
}

void Engine::write_groups() {
  if (groups_changed_) {
    for (DevicePlan& plan : plans_) plan.groups.edit() = groups_;
    groups_changed_ = false;
  }
  for (const auto& [group, hyper, value] : reader_.device_hypers()) {
    for (DevicePlan& plan : plans_) {  // waits: the CPU cannot know it otherwise
      if (plan.device.is_cpu()) plan.groups.edit()[group].hypers[hyper] = value.item().toDouble();
    }
  }
}

// Whose states are in another dict than those that were bound.
void Engine::look_up_states(const py::dict& state) {
  const uint64_t version = version_of(state.ptr());
  if (state.is(state_object_) && version == state_version_) return;
  for (Slot& slot : slots_) {
    if (!slot.is_bound) continue;
    PyObject* states = PyDict_GetItemWithError(state.ptr(), slot.object.ptr());
    if (states != slot.state_dict.ptr()) slot.is_bound = false;
  }
  state_object_ = state;
  state_version_ = version;
}

// ---- one parameter ---------------------------------------------------------------------------

// Asks for the memory that a slot's turn will need: first what the slot points to, some turns later
// what that points to.
void Engine::prefetch(size_t next) const {
  if (next + 2 * kAhead < slots_.size()) {
    const Slot& slot = slots_[next + 2 * kAhead];
    const char* impl = reinterpret_cast<const char*>(slot.param_place.impl);
    for (int line = 0; line < 3; ++line) __builtin_prefetch(impl + 64 * line);
    __builtin_prefetch(slot.state_dict.ptr());
    for (int32_t k = 0; k < slot.num_state_places; ++k) {
      __builtin_prefetch(slot.state_places[k].impl);
      __builtin_prefetch(slot.state_places[k].storage);
    }
    __builtin_prefetch(slot.param_place.storage);
  }
  if (next + kAhead < slots_.size()) {
    const Slot& slot = slots_[next + kAhead];
    if (slot.is_local || slot.param_place.impl == nullptr) return;
    const at::TensorImpl* grad = slot.param.unsafeGetTensorImpl()->grad().unsafeGetTensorImpl();
    const char* impl = reinterpret_cast<const char*>(grad);
    for (int line = 0; line < 3; ++line) __builtin_prefetch(impl + 64 * line);
  }
}

// Brings one parameter's row and gradient up to date.
Engine::Readiness Engine::prepare(Slot& slot, const py::dict& state) {
  const Needs needs = needs_[slot.group];
  void* grad = nullptr;
  if (!slot.is_bound || needs.frozen || slot.form != needs.form ||
      (needs.product && !slot.product.defined()) || slot.uses_staged_grad || !is_unchanged(slot) ||
      !has_plain_grad(slot, &grad) || (grad != nullptr && !has_same_states(slot))) {
    return prepare_changed(slot, state);
  }
  TorchArray<void*>& grads = plans_[slot.device].grads;
  if (grads.rows()[slot.row] != grad) grads.edit()[slot.row] = grad;
  return Readiness::kReady;
}

// The same where something is not as it was, or never is.
Engine::Readiness Engine::prepare_changed(Slot& slot, const py::dict& state) {
  DevicePlan& plan = plans_[slot.device];
  const bool is_frozen = needs_[slot.group].frozen;
  if (!is_unchanged(slot)) {
    // Rows, chunks and devices no longer fit.
    if (slot.param.device() != plan.device || elements_of(slot.param) != slot.elements) {
      return Readiness::kStale;
    }
    inspect_param(slot);
    slot.is_bound = false;
    plan.tensors.edit()[slot.row] = make_row(slot, {});
  }
  // A graph has to know a frozen parameter's gradient for the time when it trains again.
  const bool is_left_out = is_frozen && !options_.zero_grads && !is_recording();
  void* grad = is_left_out ? nullptr : locate_grad(slot);
  if (grad != nullptr && !is_frozen) {
    if (!bind(slot, state)) return Readiness::kLacksStates;
    if (slot.staged_param.defined()) slot.staged_param.copy_(slot.param.detach());
  }
  if (plan.grads.rows()[slot.row] != grad) plan.grads.edit()[slot.row] = grad;
  return Readiness::kReady;
}

bool Engine::bind(Slot& slot, const py::dict& state) {
  const GroupRow& group = groups_[slot.group];
  const bool cycles = schedules_.cycles_momentum(group.schedule);
  const Needs needs = needs_[slot.group];
  const bool lacks_product = needs.product && !slot.product.defined();
  if (slot.is_bound && needs.form == slot.form && !lacks_product && has_same_states(slot)) {
    return true;
  }
  const StateOptions options{options_.stochastic_rounding, options_.ema_decay >= 0.0};
  PyObject* states = PyDict_GetItemWithError(state.ptr(), slot.object.ptr());
  const Binding binding = bind_states(slot, rule_, needs.form, cycles, options, states);
  if (binding == Binding::kAbsent) {
    slot.starts_fresh = true;
    slot.count.reset();
  }
  if (binding != Binding::kBound) return false;
  plans_[slot.device].tensors.edit()[slot.row] = make_row(slot, options);
  return true;
}

// ---- the step --------------------------------------------------------------------------------

py::object Engine::step(const py::list& param_groups, const py::dict& state,
                        const std::optional<at::Tensor>& grad_scale,
                        const std::optional<at::Tensor>& found_inf) {
  const at::NoGradGuard no_grad;
  if (!is_current(param_groups)) rebuild(param_groups);
  look_up_states(state);
  read_groups(param_groups);
  py::list missing;
  for (size_t i = 0; i < slots_.size(); ++i) {
    prefetch(i);
    const Readiness readiness = prepare(slots_[i], state);
    if (readiness == Readiness::kStale) {
      rebuild(param_groups);
      return step(param_groups, state, grad_scale, found_inf);
    }
    if (readiness == Readiness::kLacksStates) {
      missing.append(py::make_tuple(slots_[i].group, slots_[i].object));
    }
  }
  if (missing.size() != 0) {
    for (const DevicePlan& plan : plans_) {
      TORCH_CHECK(
          !is_capturing(plan.device), missing.size(),
          " parameters have no optimizer state "
          "yet, which cannot be made while a CUDA graph is captured: make a step before, or "
          "use lrfast.capture");
    }
    return missing;
  }
  launch(grad_scale, found_inf);
  if (is_recording()) record_step();
  return py::none();
}

}  // namespace lrfast::bindings
