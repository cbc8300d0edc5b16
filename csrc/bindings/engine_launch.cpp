// The engine's second half: from the tables to the launch, and what Python sets and reads.
#include <ATen/ops/zeros.h>

#include "bindings/device.h"
#include "bindings/engine.h"

namespace lrfast::bindings {
namespace {

// Handing the interpreter to other threads and taking it back costs 0.1 us: as much as 500
// elements.
constexpr int64_t kElementsWorthTheGil = 16384;

// Schedules are evaluated at a double, exact up to here.
constexpr int64_t kMaxClock = int64_t{1} << 53;

// A scaler's scalar on the device; held keeps what had to be copied there.
const float* float_on(const std::optional<at::Tensor>& scalar, at::Device device,
                      std::vector<at::Tensor>& held) {
  if (!scalar) return nullptr;
  if (scalar->device() == device && scalar->scalar_type() == at::kFloat) {
    return scalar->const_data_ptr<float>();
  }
  held.push_back(scalar->to(device, at::kFloat, /*non_blocking=*/true));
  return held.back().const_data_ptr<float>();
}

// One float64 where the device can read it: here holds its value as of now where it lies elsewhere.
const double* double_on(const std::optional<at::Tensor>& scalar, at::Device device,
                        at::Tensor& here) {
  if (!scalar) return nullptr;
  if (scalar->device() == device) return scalar->const_data_ptr<double>();
  if (!here.defined()) {
    here = at::empty({1}, at::TensorOptions().dtype(at::kDouble).device(device));
  }
  here.copy_(scalar->reshape({1}), /*non_blocking=*/true);
  return here.const_data_ptr<double>();
}

void check_number(const std::optional<at::Tensor>& scalar, const char* name) {
  TORCH_CHECK_TYPE(!scalar || (scalar->scalar_type() == at::kDouble && scalar->numel() == 1), name,
                   " must be one float64, got ", scalar ? scalar->numel() : 0, " elements");
}

}  // namespace

// ---- the launch ------------------------------------------------------------------------------

bool Engine::wants_norms() const {
  return options_.max_grad_norm > 0.0 || options_.skip_nonfinite || options_.telemetry > 0 ||
         groups_clip_;
}

// Records hold norms of updates and weights, which are not added up.
void Engine::check_records() const {
  TORCH_CHECK_VALUE(options_.telemetry == 0 || plans_.size() <= 1,
                    "telemetry needs all parameters on one device, got parameters on ",
                    plans_.size(), " devices");
  TORCH_CHECK_VALUE(options_.telemetry == 0 || shards_.is_none(),
                    "telemetry needs whole parameters, got some that processes share");
}

// The memory of what a step adds up, as far as it is wanted and not there yet.
void Engine::make_totals() {
  if (!wants_norms()) return;
  check_records();
  const int64_t groups = static_cast<int64_t>(groups_.size());
  for (DevicePlan& plan : plans_) {
    const auto numbers = at::TensorOptions().dtype(at::kDouble).device(plan.device);
    const int64_t chunks = static_cast<int64_t>(plan.chunks.rows().size());
    const bool lacks_records = options_.telemetry > 0 && !plan.records.defined();
    if (plan.norms.defined() && !lacks_records) continue;
    TORCH_CHECK(
        !is_capturing(plan.device),
        "clipping, skip_nonfinite or telemetry have no memory yet, and cannot get it while a "
        "CUDA graph is captured: make a step before, or use lrfast.capture");
    if (!plan.norms.defined()) {
      plan.chunk_squares = at::zeros({chunks + 1}, numbers);  // never empty: null means none
      plan.squares = at::zeros({groups}, numbers);
      plan.norms = at::zeros({groups + 2}, numbers);
    }
    if (lacks_records) {
      plan.chunk_changes = at::zeros({chunks + 1, 2}, numbers);
      plan.records = at::zeros({options_.telemetry, groups, kRecordFields}, numbers);
    }
  }
}

void Engine::update_live(DevicePlan& plan) {
  const LiveRow row{schedules_.on(plan.device),
                    double_on(rate_scale_, plan.device, plan.rate_scale_here),
                    double_on(stop_flag_, plan.device, plan.stop_here), options_.max_grad_norm};
  if (plan.live.rows().empty() || plan.live.rows()[0] != row) plan.live.edit().assign(1, row);
}

// What does not depend on the tables' contents.
StepTables Engine::fixed_tables(DevicePlan& plan) const {
  StepTables tables{};
  tables.values = static_cast<ScheduleValues*>(plan.values.mutable_data_ptr());
  tables.clock = static_cast<Clock*>(plan.clock.mutable_data_ptr());
  tables.rates = plan.rates.mutable_data_ptr<double>();
  tables.gradients.skip_nonfinite = options_.skip_nonfinite;
  tables.gradients.zero = options_.zero_grads;
  tables.average_weight = 1.0 - options_.ema_decay;
  tables.has_averages = options_.ema_decay >= 0.0;
  tables.seed = options_.seed;
  tables.num_chunks = static_cast<int64_t>(plan.chunks.rows().size());
  tables.chunk_size = chunk_size(plan.device);
  tables.num_tensors = static_cast<int32_t>(plan.tensors.rows().size());
  tables.num_groups = static_cast<int32_t>(groups_.size());
  if (wants_norms()) {
    tables.totals.chunk_squares = plan.chunk_squares.mutable_data_ptr<double>();
    tables.totals.group_squares = plan.squares.mutable_data_ptr<double>();
    tables.totals.norms = plan.norms.mutable_data_ptr<double>();
  }
  if (options_.telemetry > 0) {
    tables.totals.chunk_changes = plan.chunk_changes.mutable_data_ptr<double>();
    tables.totals.records = plan.records.mutable_data_ptr<double>();
    tables.totals.capacity = options_.telemetry;
  }
  return tables;
}

// The plan's tables, brought up to date, for a launch that runs now.
StepTables Engine::current_tables(DevicePlan& plan) {
  update_live(plan);
  if (plan.device.is_cuda()) note_stream(plan);
  StepTables tables = fixed_tables(plan);
  tables.tensors = plan.tensors.on(plan.device);
  tables.grads = plan.grads.on(plan.device);
  tables.groups = plan.groups.on(plan.device);
  tables.chunks = plan.chunks.on(plan.device);
  tables.group_chunks = plan.group_chunks.on(plan.device);
  tables.live = plan.live.on(plan.device);
  if (plan.device.is_cuda() && !plan.has_values) cuda_calls::schedule(tables, plan.device);
  plan.has_values = true;
  return tables;
}

// Adds every group's squares up over the devices, and over the processes where they share
// parameters.
void Engine::add_squares() {
  at::Tensor& total = plans_.front().squares;
  for (size_t i = 1; i < plans_.size(); ++i) {
    // The CPU waits for what a GPU has summed; between GPUs nothing does.
    total.add_(plans_[i].squares.to(total.device(), total.scalar_type(), !total.is_cpu()));
  }
  if (!shards_.is_none()) shards_.attr("add")(total);
  for (size_t i = 1; i < plans_.size(); ++i) {
    plans_[i].squares.copy_(total, /*non_blocking=*/!plans_[i].device.is_cpu());
  }
}

void Engine::run(at::ArrayRef<StepTables> tables, Part part) {
  for (size_t i = 0; i < plans_.size(); ++i) {
    DevicePlan& plan = plans_[i];
    StepTables own = tables[i];
    own.part = part;
    if (plan.elements < kElementsWorthTheGil) {
      bindings::step(rule_.place, own, plan.device, plan.scratch);
    } else {
      const py::gil_scoped_release release;
      bindings::step(rule_.place, own, plan.device, plan.scratch);
    }
  }
}

void Engine::launch(const std::optional<at::Tensor>& grad_scale,
                    const std::optional<at::Tensor>& found_inf) {
  make_totals();
  write_groups();
  std::vector<at::Tensor> held;
  c10::SmallVector<StepTables, 1> all;  // [plans]
  for (DevicePlan& plan : plans_) {
    StepTables tables = is_capturing(plan.device) ? captured_tables(plan) : current_tables(plan);
    copy_device_hypers(plan);
    tables.gradients.scale = float_on(grad_scale, plan.device, held);
    tables.gradients.found_inf = float_on(found_inf, plan.device, held);
    all.push_back(tables);
  }
  if (wants_norms() && adds_squares()) {
    run(all, Part::kSquares);
    add_squares();
    run(all, Part::kUpdate);
  } else {
    run(all, Part::kWhole);
  }
  finish_launch();
}

// Brings staged values home and tells autograd what has changed.
void Engine::finish_launch() {
  for (Slot& slot : slots_) {
    if (plans_[slot.device].grads.rows()[slot.row] == nullptr) continue;
    if (options_.zero_grads && slot.uses_staged_grad) grad_of(slot).zero_();
    if (needs_[slot.group].frozen) continue;
    if (slot.staged_param.defined()) slot.param.detach().copy_(slot.staged_param);
    // Lets autograd notice a backward pass through values that are gone.
    if (!slot.param.is_inference()) slot.param.unsafeGetTensorImpl()->bump_version();
  }
}

// ---- what Python sets and reads --------------------------------------------------------------

void Engine::set_schedules(const std::vector<ScheduleTuple>& schedules,
                           const std::vector<int32_t>& group_schedules) {
  for (const int32_t schedule : group_schedules) {
    TORCH_CHECK_INDEX(schedule >= -1 && schedule < static_cast<int64_t>(schedules.size()),
                      "group_schedules must be -1 or an index into ", schedules.size(),
                      " schedules, got ", schedule);
  }
  schedules_.assign(schedules);
  group_schedules_ = group_schedules;
  for (GroupRow& group : groups_) group.schedule = kUnread;
  groups_unread_ = true;
  initial_clock_[0] = 0;
  for (DevicePlan& plan : plans_) {
    plan.clock.narrow(0, 0, 1).fill_(0);
    plan.has_values = false;
  }
}

void Engine::set_options(const EngineOptions& options) {
  const bool keeps_records = options.telemetry == options_.telemetry;
  options_ = options;
  for (Slot& slot : slots_) slot.is_bound = false;
  if (keeps_records) return;
  for (DevicePlan& plan : plans_) {
    plan.records.reset();
    plan.chunk_changes.reset();
  }
}

void Engine::watch(std::optional<at::Tensor> flag) {
  check_number(flag, "flag");
  stop_flag_ = std::move(flag);
}

void Engine::scale_rates(std::optional<at::Tensor> scale) {
  check_number(scale, "scale");
  rate_scale_ = std::move(scale);
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
  result["needs_product"] = rule_.needs_product(cycles);
  return result;
}

std::vector<at::Tensor> Engine::clocks() const {
  std::vector<at::Tensor> views;
  for (const DevicePlan& plan : plans_) views.push_back(plan.clock.narrow(0, 0, 2));
  return views;
}

void Engine::set_clock(int64_t applied, int64_t steps) {
  // A count may come from a file, and places in the ring of records follow from it.
  for (const int64_t count : {applied, steps}) {
    TORCH_CHECK_VALUE(count >= 0 && count <= kMaxClock,
                      "steps must lie in [0, 2^53] to set the clock, got ", count);
  }
  initial_clock_[0] = applied;
  initial_clock_[1] = steps;
  for (DevicePlan& plan : plans_) {
    for (int64_t i = 0; i < 2; ++i) plan.clock.narrow(0, i, 1).fill_(initial_clock_[i]);
    plan.has_values = false;
  }
}

std::vector<at::Tensor> Engine::rates() const {
  std::vector<at::Tensor> all;
  for (const DevicePlan& plan : plans_) all.push_back(plan.rates);
  return all;
}

std::vector<at::Tensor> Engine::norms() const {
  std::vector<at::Tensor> all;
  for (const DevicePlan& plan : plans_) {
    if (plan.norms.defined()) all.push_back(plan.norms);
  }
  return all;
}

std::vector<at::Tensor> Engine::records() const {
  std::vector<at::Tensor> all;
  for (const DevicePlan& plan : plans_) {
    if (plan.records.defined()) all.push_back(plan.records);
  }
  return all;
}

py::list Engine::private_counts() const {
  py::list counts;
  if (rule_.count_name != nullptr) return counts;
  for (const Slot& slot : slots_) {
    if (slot.count.defined()) counts.append(py::make_tuple(slot.object, slot.count));
  }
  return counts;
}

}  // namespace lrfast::bindings
