// The engine under CUDA graphs. A graph holds addresses and options by value; everything else lies
// in tables that stay where they are. So nothing is uploaded while a graph is captured, and what
// the host changes afterwards is uploaded, outside the graph, before the next replay.
#include "bindings/device.h"
#include "bindings/engine.h"
#include "bindings/look.h"

namespace lrfast::bindings {
namespace {

// The gradient that a parameter holds now, by identity.
const void* held_grad(const Slot& slot) {
  if (!slot.is_local) return grad_impl(*slot.param_place.impl);
  const py::object grad = slot.object.attr("grad");
  return grad.is_none() ? nullptr : grad.ptr();
}

// A part of a DTensor is known by its wrapper alone.
const void* held_data(const Slot& slot) {
  const at::TensorImpl* grad = slot.is_local ? nullptr : grad_impl(*slot.param_place.impl);
  return grad == nullptr ? nullptr : grad->unsafe_storage().data();
}

bool requires_grad(const Slot& slot) {
  const at::TensorImpl& whole = *THPVariable_Unpack(slot.object.ptr()).unsafeGetTensorImpl();
  const auto* meta = static_cast<torch::autograd::AutogradMeta*>(
      const_cast<at::TensorImpl&>(whole).autograd_meta());
  return meta != nullptr && meta->requires_grad_;
}

}  // namespace

// ---- tables for a launch that is recorded -------------------------------------------------------

// Where the tables will be. What is captured by lrfast.capture may still lack rows: refresh()
// brings them before the first replay. Nobody does that for others who capture a step.
StepTables Engine::captured_tables(DevicePlan& plan) {
  bool is_current = plan.has_values;
  const auto place = [&]<class Row>(TorchArray<Row>& array) {
    is_current = is_current && array.is_current_on(plan.device);
    return static_cast<const Row*>(array.reserved_on(plan.device).const_data_ptr());
  };
  StepTables tables = fixed_tables(plan);
  tables.tensors = place(plan.tensors);
  tables.grads = place(plan.grads);
  tables.groups = place(plan.groups);
  tables.chunks = place(plan.chunks);
  tables.group_chunks = place(plan.group_chunks);
  tables.live = place(plan.live);
  TORCH_CHECK(is_current || is_recording(),
              "gradients, param groups or schedules have changed since the last step, which a CUDA "
              "graph cannot take note of: zero gradients in place, make a step before the capture, "
              "or use lrfast.capture");
  return tables;
}

// Tables that one stream still reads must not be given to another when they are freed.
void Engine::note_stream(DevicePlan& plan) {
  const c10::Stream stream = cuda_calls::current_stream(plan.device);
  if (plan.stream && *plan.stream != stream) {
    const auto note = [&](at::Tensor& memory) {
      if (memory.defined()) memory.record_stream(stream);
    };
    plan.tensors.visit_on(plan.device, note);
    plan.grads.visit_on(plan.device, note);
    plan.groups.visit_on(plan.device, note);
    plan.chunks.visit_on(plan.device, note);
    plan.group_chunks.visit_on(plan.device, note);
    plan.live.visit_on(plan.device, note);
    schedules_.visit_on(plan.device, note);
    for (at::Tensor* memory : {&plan.clock, &plan.rates, &plan.values, &plan.chunk_squares,
                               &plan.squares, &plan.norms, &plan.chunk_changes, &plan.records}) {
      note(*memory);
    }
  }
  plan.stream = stream;
}

// Hyperparameters whose values a GPU's tensors hold; part of a graph, too.
void Engine::copy_device_hypers(DevicePlan& plan) {
  if (plan.device.is_cpu()) return;
  for (const auto& [group, hyper, value] : reader_.device_hypers()) {
    const int64_t place = group * static_cast<int64_t>(sizeof(GroupRow) / sizeof(double)) + hyper;
    const at::Tensor numbers = plan.groups.reserved_on(plan.device).view(at::kDouble);
    numbers.narrow(0, place, 1).copy_(value.reshape({1}), /*non_blocking=*/true);
  }
}

// ---- what was recorded --------------------------------------------------------------------------

void Engine::build(const py::list& param_groups) {
  const at::NoGradGuard no_grad;
  if (!is_current(param_groups)) rebuild(param_groups);
  read_groups(param_groups);
  make_totals();
  write_groups();
  for (DevicePlan& plan : plans_) current_tables(plan);
}

int64_t Engine::begin_recording() {
  recording_.emplace();
  return ++recordings_;
}

void Engine::forget_recording(int64_t number) {
  if (number == recordings_) recording_.reset();
}

void Engine::record_step() {
  Recording& recording = *recording_;
  recording.steps += 1;
  recording.rebuilds = rebuilds_;
  recording.has_norms = wants_norms();
  recording.options = options_;
  recording.hypers.clear();
  for (const DeviceHyper& hyper : reader_.device_hypers()) {
    recording.hypers.push_back(hyper.value.const_data_ptr());
  }
  recording.gradients.assign(slots_.size(), {});
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    recording.gradients[i].read = plans_[slot.device].grads.rows()[slot.row];
    recording.gradients[i].skips_staging =
        slot.staged_param.defined() && groups_[slot.group].frozen != 0;
  }
}

void Engine::end_recording() {
  TORCH_CHECK(recording_ && recording_->is_open, "end_recording needs a begin_recording before it");
  const int64_t steps = recording_->steps;
  if (steps != 1) recording_.reset();
  TORCH_CHECK_VALUE(steps == 1, "the training step must call optimizer.step() once, got ", steps,
                    " calls");
  recording_->is_open = false;
  mark_gradients(recordings_);
}

void Engine::mark_gradients(int64_t number) {
  if (!has_recorded(number) || recording_->rebuilds != rebuilds_) return;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    RecordedGradient& recorded = recording_->gradients[i];
    recorded.left = held_grad(slot);
    recorded.left_data = held_data(slot);
    recorded.requires_grad = requires_grad(slot);
  }
}

// ---- before a replay ----------------------------------------------------------------------------

py::object Engine::refresh(int64_t number, const py::list& param_groups, const py::dict& state) {
  const at::NoGradGuard no_grad;
  if (!has_recorded(number)) return py::str("another step of the same optimizer was captured");
  if (recording_->rebuilds != rebuilds_ || !is_current(param_groups)) {
    return py::str("param_groups hold other groups or parameters");
  }
  look_up_states(state);
  read_groups(param_groups);
  if (const std::string change = change_in_options(); !change.empty()) return py::str(change);
  py::list missing;
  for (size_t i = 0; i < slots_.size(); ++i) {
    prefetch(i);
    Slot& slot = slots_[i];
    const RecordedGradient& recorded = recording_->gradients[i];
    const bool trains = recorded.read != nullptr && groups_[slot.group].frozen == 0;
    if (!is_unchanged(slot) || held_grad(slot) != recorded.left ||
        held_data(slot) != recorded.left_data || requires_grad(slot) != recorded.requires_grad ||
        (trains && recorded.skips_staging)) {
      return py::str(change_in(slot, recorded));
    }
    if (trains && !bind(slot, state)) missing.append(py::make_tuple(slot.group, slot.object));
    TorchArray<void*>& grads = plans_[slot.device].grads;
    const bool is_moved = grads.rows()[slot.row] != recorded.read;  // by a step beside the graph
    if (is_moved && !slot.param.is_cpu()) grads.edit()[slot.row] = recorded.read;
  }
  if (missing.size() != 0) return missing;
  write_groups();
  for (DevicePlan& plan : plans_) {
    if (plan.device.is_cuda()) current_tables(plan);
  }
  return py::none();
}

std::string Engine::change_in_options() const {
  const EngineOptions& old = recording_->options;
  const auto name = [](const char* option) { return std::string(option) + " has changed"; };
  if (options_.skip_nonfinite != old.skip_nonfinite) return name("skip_nonfinite");
  if (options_.zero_grads != old.zero_grads) return name("zero_grads");
  if (options_.ema_decay != old.ema_decay) return name("ema_decay");
  if (options_.stochastic_rounding != old.stochastic_rounding) return name("stochastic_rounding");
  if (options_.seed != old.seed) return name("seed");
  if (options_.telemetry != old.telemetry) return name("telemetry");
  if (wants_norms() != recording_->has_norms) {
    return std::string("clipping has been switched ") + (wants_norms() ? "on" : "off");
  }
  const std::vector<DeviceHyper>& hypers = reader_.device_hypers();
  bool same = hypers.size() == recording_->hypers.size();
  for (size_t i = 0; same && i < hypers.size(); ++i) {
    same = hypers[i].value.const_data_ptr() == recording_->hypers[i];
  }
  return same ? "" : "a tensor in param_groups was replaced, which can only be filled in place";
}

std::string Engine::change_in(const Slot& slot, const RecordedGradient& recorded) const {
  if (!is_unchanged(slot)) return slot.describe() + " lies elsewhere in memory";
  if (requires_grad(slot) != recorded.requires_grad) {
    return "requires_grad of " + slot.describe() + " has changed";
  }
  const std::string grad = "the gradient of " + slot.describe();
  if (held_grad(slot) == recorded.left && held_data(slot) == recorded.left_data) {
    return slot.describe() + ", which has gaps in memory, was frozen and trains now";
  }
  if (recorded.left == nullptr) return grad + " was None and is there now";
  return grad + (held_grad(slot) == nullptr ? " is None now" : " was replaced by another tensor") +
         "; zero gradients in place between training steps: zero_grad(set_to_none=False)";
}

std::vector<std::vector<int64_t>> Engine::addresses() {
  std::vector<std::vector<int64_t>> all;
  for (DevicePlan& plan : plans_) {
    const StepTables t = current_tables(plan);
    std::vector<int64_t> own;
    for (const void* place :
         {static_cast<const void*>(t.tensors), static_cast<const void*>(t.grads),
          static_cast<const void*>(t.groups), static_cast<const void*>(t.chunks),
          static_cast<const void*>(t.group_chunks), static_cast<const void*>(t.live),
          static_cast<const void*>(t.values), static_cast<const void*>(t.clock),
          static_cast<const void*>(t.rates), static_cast<const void*>(t.totals.chunk_squares),
          static_cast<const void*>(t.totals.group_squares),
          static_cast<const void*>(t.totals.norms),
          static_cast<const void*>(t.totals.chunk_changes),
          static_cast<const void*>(t.totals.records)}) {
      own.push_back(reinterpret_cast<int64_t>(place));
    }
    all.push_back(own);
  }
  return all;
}

}  // namespace lrfast::bindings
