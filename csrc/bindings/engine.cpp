#include "bindings/engine.h"

#include <ATen/TracerMode.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <unordered_map>

#include "bindings/device.h"

namespace lrfast::bindings {
namespace {

// Schedules are evaluated at a double, exact up to here.
constexpr int64_t kMaxClock = int64_t{1} << 53;

// A scaler's scalar on the device; held keeps what had to be copied there.
const float* float_on(const std::optional<at::Tensor>& scalar, at::Device device,
                      std::vector<at::Tensor>& held) {
  if (!scalar) return nullptr;
  if (scalar->device() == device && scalar->scalar_type() == at::kFloat) {
    return scalar->const_data_ptr<float>();
  }
  held.push_back(scalar->to(device, at::kFloat, may_queue_copy(device)));
  return held.back().const_data_ptr<float>();
}

// A graph of operators would hold nothing of a step, which happens once, while it is traced.
void check_not_traced() {
  using Modes = c10::impl::TorchDispatchModeTLS;
  const bool has_proxies =
      Modes::any_modes_set() && Modes::get_mode(c10::impl::TorchDispatchModeKey::PROXY).has_value();
  TORCH_CHECK(!has_proxies && !at::tracer::impl::is_dispatch_enabled() &&
                  !c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::PreDispatch),
              "the optimizer's step cannot be traced, by make_fx, torch.export or torch.jit.trace: "
              "the graph would lose its update; trace loss and gradients and call step() after the "
              "graph, use lrfast.capture, or take an optimizer of torch.optim");
}

bool contains(const std::vector<at::Device>& devices, const at::Tensor& tensor) {
  return std::find(devices.begin(), devices.end(), tensor.device()) != devices.end();
}

void check_number(const std::optional<at::Tensor>& scalar, const char* name) {
  TORCH_CHECK_TYPE(!scalar || (scalar->scalar_type() == at::kDouble && scalar->numel() == 1), name,
                   " must be one float64, got ", scalar ? scalar->numel() : 0, " elements");
}

// The tensors that there are of one in each plan.
std::vector<at::Tensor> defined(const std::vector<DevicePlan>& plans,
                                at::Tensor DevicePlan::* tensor) {
  std::vector<at::Tensor> all;
  for (const DevicePlan& plan : plans) {
    if ((plan.*tensor).defined()) all.push_back(plan.*tensor);
  }
  return all;
}

}  // namespace

Engine::Engine(const std::string& rule, py::object find_shards, py::object products)
    : rule_(find_rule(rule)),
      find_shards_(std::move(find_shards)),
      groups_(rule_),
      directions_(std::move(products)) {
  settings_.measures = rule_.measures;
}

// ---- ask: what the optimizer holds -----------------------------------------------------------

// Nothing of the engine changes until every parameter has been found fit.
void Engine::rebuild(const py::list& param_groups) {
  std::unordered_map<PyObject*, const Parameter*> known;
  for (const Parameter& param : parameters_) known.emplace(param.object.ptr(), &param);
  const py::object shards = find_shards_(param_groups);
  std::vector<Parameter> parameters;
  std::vector<at::Device> devices;  // of those that may train
  int32_t g = 0;
  for (py::handle group : param_groups) {
    int32_t index = 0;
    for (py::handle object : group["params"]) {
      const auto old = known.find(object.ptr());
      Parameter param = old == known.end() ? Parameter() : *old->second;
      param.object = py::reinterpret_borrow<py::object>(object);
      param.tensor = local_tensor(object);
      param.is_local = !param.tensor.is_same(THPVariable_Unpack(object.ptr()));
      param.group = g;
      param.index = index++;
      param.is_bound = false;
      param.is_left_out = false;
      param.direction.reset();
      param.number = static_cast<uint32_t>(parameters.size());
      if (param.may_train()) devices.push_back(param.tensor.device());
      parameters.push_back(std::move(param));
    }
    g += 1;
  }
  std::vector<DevicePlan> plans;
  for (Parameter& param : parameters) {
    // A frozen parameter demands nothing: no kernel for its kind, no tables for a device and no
    // mesh of its own.
    const bool is_beside = devices.empty() || (!param.is_local && contains(devices, param.tensor));
    if ((!is_beside && !param.may_train()) || !param.try_inspect()) {
      param.leave_out();
      continue;
    }
    const at::Device device = param.tensor.device();
    TORCH_CHECK(!is_capturing(device),
                "the optimizer has no tables for its parameters yet, and cannot make them while "
                "a CUDA graph is captured: make a step before, or use lrfast.capture");
    DevicePlan& plan = plan_for(device, plans, plans_, initial_clock_, initial_distance_);
    param.device = static_cast<int32_t>(&plan - plans.data());
    param.is_counted = shards.is_none() || shards.attr("counts")(param.object).cast<bool>();
    param.row = plan.add(param);
  }
  for (DevicePlan& plan : plans) plan.finish(g, rule_.measures);
  shards_ = shards;
  parameters_ = std::move(parameters);
  plans_ = std::move(plans);
  groups_.reset(param_groups);
  directions_.forget();
  rebuilds_ += 1;
}

void Engine::read_groups(const py::list& param_groups) {
  groups_.read(param_groups, settings_.schedules);
  settings_.groups_clip = groups_.clip();
}

// The groups, and whose states are in another dict than those that were bound.
void Engine::read(const py::list& param_groups, const py::dict& state) {
  const uint64_t version = version_of(state.ptr());
  if (!state.is(state_object_) || version != state_version_) {
    for (Parameter& param : parameters_) {
      if (!param.is_bound) continue;
      PyObject* states = PyDict_GetItemWithError(state.ptr(), param.object.ptr());
      if (states != param.state_dict.ptr()) param.is_bound = false;
    }
    state_object_ = state;
    state_version_ = version;
  }
  read_groups(param_groups);
}

py::object Engine::step(const py::list& param_groups, const py::dict& state,
                        const std::optional<at::Tensor>& grad_scale,
                        const std::optional<at::Tensor>& found_inf) {
  const at::NoGradGuard no_grad;
  check_not_traced();
  if (!groups_.are_held(param_groups, parameters_)) rebuild(param_groups);
  read(param_groups, state);
  std::vector<MissingStates> missing;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    prefetch(parameters_, i);
    const Readiness readiness = prepare(parameters_[i], state);
    if (readiness == Readiness::kStale) {
      rebuild(param_groups);
      return step(param_groups, state, grad_scale, found_inf);
    }
    if (readiness == Readiness::kLacksStates) missing.push_back(missing_states(parameters_[i]));
  }
  if (!missing.empty()) {
    for (const DevicePlan& plan : plans_) {
      TORCH_CHECK(!is_capturing(plan.device), missing.size(),
                  " parameters have no optimizer state yet, which cannot be made while a CUDA "
                  "graph is captured: make a step before, or use lrfast.capture");
    }
    return py::cast(missing);
  }
  launch(state, grad_scale, found_inf);
  if (is_recording()) {
    recording_->note_step(settings_, groups_, parameters_, plans_);
    recording_->rebuilds = rebuilds_;
    recording_->settings = directions_.settings(param_groups);
  }
  return py::none();
}

// ---- bind: one parameter ---------------------------------------------------------------------

// Brings one parameter's row and gradient up to date.
Engine::Readiness Engine::prepare(Parameter& param, const py::dict& state) {
  if (param.is_left_out) return prepare_left_out(param);
  const GroupNeeds needs = groups_.needs(param.group);
  void* grad = nullptr;
  if (!param.is_bound || needs.frozen || param.form != needs.form ||
      (needs.product && !param.product.defined()) || param.uses_staged_grad ||
      !param.is_unchanged() || !param.has_plain_grad(&grad) ||
      (grad != nullptr && !param.has_same_states())) {
    return prepare_changed(param, state);
  }
  plans_[param.device].set_grad(param, grad);
  return Readiness::kReady;
}

// The same if something is not as it was, or never is.
Engine::Readiness Engine::prepare_changed(Parameter& param, const py::dict& state) {
  DevicePlan& plan = plans_[param.device];
  if (!param.is_unchanged()) {
    const int64_t elements = param.elements;
    // Rows, chunks and devices no longer fit, or no kernel can update what it has become.
    if (param.tensor.device() != plan.device || elements_of(param.tensor) != elements ||
        !param.try_inspect()) {
      return Readiness::kStale;
    }
    param.is_bound = false;
    directions_.forget();
    plan.set_row(param, {});
  }
  void* grad = reads_grad(param) ? param.locate_grad() : nullptr;
  if (grad != nullptr && !groups_.needs(param.group).frozen) {
    if (!bind(param, state)) return Readiness::kLacksStates;
    if (param.staged_param.defined()) param.staged_param.copy_(param.tensor.detach());
  }
  plan.set_grad(param, grad);
  return Readiness::kReady;
}

// The same for one in no table, which is inspected, and raises, once it has a gradient.
Engine::Readiness Engine::prepare_left_out(Parameter& param) {
  if (!param.has_grad() || !reads_grad(param)) return Readiness::kReady;
  param.inspect();
  return Readiness::kStale;
}

// A graph has to know a frozen parameter's gradient for the time when it trains again.
bool Engine::reads_grad(const Parameter& param) const {
  const bool is_frozen = groups_.needs(param.group).frozen;
  return !is_frozen || settings_.options.zero_grads || is_recording();
}

bool Engine::bind(Parameter& param, const py::dict& state) {
  const GroupNeeds needs = groups_.needs(param.group);
  const bool lacks_product = needs.product && !param.product.defined();
  if (param.is_bound && needs.form == param.form && !lacks_product && param.has_same_states()) {
    return true;
  }
  const EngineOptions& options = settings_.options;
  PyObject* states = PyDict_GetItemWithError(state.ptr(), param.object.ptr());
  const Binding binding = param.bind_states(rule_, needs.form, needs.product, options, states);
  if (binding == Binding::kAbsent) {
    param.starts_fresh = true;
    param.count.reset();
  }
  if (binding != Binding::kBound) return false;
  plans_[param.device].set_row(param, options);
  return true;
}

MissingStates Engine::missing_states(const Parameter& param) const {
  const GroupNeeds& needs = groups_.needs(param.group);
  const StateNames& names = rule_.forms[needs.form];
  return {param.group,       param.object,       {names.names, names.names + names.count},
          rule_.count_name,  rule_.product_name, needs.product,
          rule_.largest_name};
}

// ---- launch ----------------------------------------------------------------------------------

// Brings the plans' groups and totals up to date.
void Engine::update_tables() {
  if (settings_.wants_norms() || settings_.wants_terms()) {
    // Records hold norms of updates and weights, which are not added up.
    const bool keeps_records = settings_.options.telemetry > 0;
    TORCH_CHECK_VALUE(!keeps_records || plans_.size() <= 1,
                      "telemetry needs all parameters on one device, got parameters on ",
                      plans_.size(), " devices");
    TORCH_CHECK_VALUE(!keeps_records || shards_.is_none(),
                      "telemetry needs whole parameters, got some that processes share");
    TORCH_CHECK_VALUE(!settings_.wants_terms() || shards_.is_none(),
                      "cautious and clipping_threshold need whole parameters, got some that "
                      "processes share");
    for (DevicePlan& plan : plans_) plan.make_totals(settings_);
  }
  const bool is_changed = groups_.take_change();
  for (DevicePlan& plan : plans_) {
    if (is_changed) plan.set_groups(groups_.rows());
    plan.read_device_hypers(groups_.device_hypers());
  }
  if (rule_.direction_form >= 0) {
    directions_.place(parameters_, groups_, rule_.direction_form, plans_, settings_.options);
  }
}

StepTables Engine::current_tables(DevicePlan& plan) {
  const StepTables tables = plan.current_tables(settings_);
  if (plan.device.is_cuda()) plan.note_stream(settings_, parameters_);
  return tables;
}

void Engine::run(at::ArrayRef<StepTables> tables, Phase phase) {
  for (size_t i = 0; i < plans_.size(); ++i) {
    StepTables own = tables[i];
    own.phase = phase;
    if (phase == Phase::kDirections) {  // what else a step does comes with the moves
      own.has_averages = false;
      own.totals.chunk_changes = nullptr;
    }
    plans_[i].run(rule_.place, own);
  }
}

// Adds sums up over the devices, and over the processes if they share parameters.
void Engine::add_up(at::Tensor DevicePlan::* sums) {
  at::Tensor& total = plans_.front().*sums;
  for (size_t i = 1; i < plans_.size(); ++i) {
    // The CPU waits for what a GPU has summed; between GPUs nothing does.
    const at::Tensor& own = plans_[i].*sums;
    total.add_(own.to(total.device(), total.scalar_type(), may_queue_copy(total.device())));
  }
  if (!shards_.is_none()) shards_.attr("add")(total);
  for (size_t i = 1; i < plans_.size(); ++i) {
    (plans_[i].*sums).copy_(total, may_queue_copy(plans_[i].device));
  }
}

void Engine::launch(const py::dict& state, const std::optional<at::Tensor>& grad_scale,
                    const std::optional<at::Tensor>& found_inf) {
  update_tables();
  std::vector<at::Tensor> held;
  c10::SmallVector<StepTables, 1> all;  // [plans]
  for (DevicePlan& plan : plans_) {
    StepTables tables = is_capturing(plan.device) ? plan.captured_tables(settings_, is_recording())
                                                  : current_tables(plan);
    plan.copy_device_hypers(groups_.device_hypers());
    tables.gradients.scale = float_on(grad_scale, plan.device, held);
    tables.gradients.found_inf = float_on(found_inf, plan.device, held);
    all.push_back(tables);
  }
  const bool is_shared = !shards_.is_none() && !plans_.empty();
  const bool is_split = is_shared || plans_.size() > 1;
  if (is_split && settings_.wants_norms()) {
    run(all, Phase::kSquares);
    add_up(&DevicePlan::squares);
  }
  if (is_split && settings_.measures) {
    run(all, Phase::kMeasure);
    add_up(&DevicePlan::terms);
  }
  const bool is_begun = is_split && (settings_.wants_norms() || settings_.measures);
  if (directions_.is_empty()) {
    run(all, is_begun ? Phase::kUpdate : Phase::kWhole);
  } else {
    if (settings_.wants_norms()) run(all, is_begun ? Phase::kFinish : Phase::kNorms);
    run(all, Phase::kDirections);
    const std::vector<at::Tensor> cleared =
        directions_.transform(parameters_, groups_, plans_, state);
    run(all, Phase::kMoves);
    for (const at::Tensor& stack : cleared) stack.zero_();
  }
  finish_launch();
}

// Brings staged values home and tells autograd what has changed.
void Engine::finish_launch() {
  for (Parameter& param : parameters_) {
    if (param.is_left_out || plans_[param.device].grad(param) == nullptr) continue;
    if (settings_.options.zero_grads && param.uses_staged_grad) param.grad().zero_();
    if (groups_.needs(param.group).frozen) continue;
    at::Tensor& tensor = param.tensor;
    if (param.staged_param.defined()) tensor.detach().copy_(param.staged_param);
    // Lets autograd notice a backward pass through values that are gone.
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

// ---- under CUDA graphs -----------------------------------------------------------------------

void Engine::build(const py::list& param_groups) {
  const at::NoGradGuard no_grad;
  if (!groups_.are_held(param_groups, parameters_)) rebuild(param_groups);
  read_groups(param_groups);
  update_tables();
  for (DevicePlan& plan : plans_) current_tables(plan);
}

int64_t Engine::begin_recording() {
  recording_.emplace();
  return ++recordings_;
}

bool Engine::end_recording() {
  TORCH_CHECK(is_recording(), "end_recording needs a begin_recording before it");
  const int64_t steps = recording_->steps;
  if (steps != 1) recording_.reset();
  TORCH_CHECK_VALUE(steps == 1, "the training step must call optimizer.step() once, got ", steps,
                    " calls");
  recording_->is_open = false;
  mark_gradients(recordings_);
  return recording_->is_captured;
}

void Engine::forget_recording(int64_t number) {
  if (number == recordings_) recording_.reset();
}

void Engine::mark_gradients(int64_t number) {
  if (!has_recorded(number) || recording_->rebuilds != rebuilds_) return;
  for (size_t i = 0; i < parameters_.size(); ++i) recording_->gradients[i].mark(parameters_[i]);
}

py::object Engine::refresh(int64_t number, const py::list& param_groups, const py::dict& state) {
  const at::NoGradGuard no_grad;
  check_not_traced();
  if (!has_recorded(number)) return py::str("another step of the same optimizer was captured");
  if (recording_->rebuilds != rebuilds_ || !groups_.are_held(param_groups, parameters_)) {
    return py::str("param_groups hold other groups or parameters");
  }
  read(param_groups, state);
  if (const std::string change = recording_->change_in(settings_, groups_); !change.empty()) {
    return py::str(change);
  }
  if (!directions_.settings(param_groups).equal(recording_->settings)) {
    return py::str("the rule or the products of a param group have changed");
  }
  std::vector<MissingStates> missing;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    prefetch(parameters_, i);
    Parameter& param = parameters_[i];
    void* const read = recording_->gradients[i].read;
    const bool trains = read != nullptr && !groups_.needs(param.group).frozen;
    const std::string change = recording_->gradients[i].change_in(param, trains);
    if (!change.empty()) return py::str(change);
    if (trains && !bind(param, state)) missing.push_back(missing_states(param));
    // A step beside the graph may have moved it.
    if (!param.is_left_out && !param.tensor.is_cpu()) plans_[param.device].set_grad(param, read);
  }
  if (!missing.empty()) return py::cast(missing);
  update_tables();
  for (DevicePlan& plan : plans_) {
    if (plan.device.is_cuda()) current_tables(plan);
  }
  return py::none();
}

std::vector<std::vector<int64_t>> Engine::addresses() {
  std::vector<std::vector<int64_t>> all;
  for (DevicePlan& plan : plans_) all.push_back(plan.addresses(settings_));
  return all;
}

// ---- what Python sets and reads --------------------------------------------------------------

void Engine::set_schedules(const std::vector<ScheduleTuple>& schedules,
                           const std::vector<int32_t>& group_schedules) {
  for (const int32_t schedule : group_schedules) {
    TORCH_CHECK_INDEX(schedule >= -1 && schedule < static_cast<int64_t>(schedules.size()),
                      "group_schedules must be -1 or an index into ", schedules.size(),
                      " schedules, got ", schedule);
  }
  settings_.schedules.assign(schedules);
  groups_.set_schedules(group_schedules);
  initial_clock_[0] = 0;
  for (DevicePlan& plan : plans_) plan.set_clock(0, 0);
}

void Engine::set_options(const EngineOptions& options) {
  const bool keeps_records = options.telemetry == settings_.options.telemetry;
  settings_.options = options;
  for (Parameter& param : parameters_) param.is_bound = false;
  if (keeps_records) return;
  for (DevicePlan& plan : plans_) plan.drop_records();
}

void Engine::watch(std::optional<at::Tensor> flag) {
  check_number(flag, "flag");
  exchange(settings_.stop_flag, std::move(flag));
}

void Engine::scale_rates(std::optional<at::Tensor> scale) {
  check_number(scale, "scale");
  exchange(settings_.rate_scale, std::move(scale));
}

// Takes another number that steps read, which is to be noted for their stream.
void Engine::exchange(std::optional<at::Tensor>& held, std::optional<at::Tensor> given) {
  if (held.has_value() == given.has_value() && (!held || held->is_same(*given))) return;
  held = std::move(given);
  for (DevicePlan& plan : plans_) plan.forget_stream();
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
    for (int64_t i = 0; i < 2; ++i) plan.set_clock(i, initial_clock_[i]);
  }
}

std::vector<at::Tensor> Engine::distances() const {
  std::vector<at::Tensor> views;
  if (!rule_.measures) return views;
  for (const DevicePlan& plan : plans_) views.push_back(plan.distance());
  return views;
}

void Engine::set_distance(const std::array<double, 6>& n) {
  initial_distance_ = {n[0], n[1], n[2], n[3], n[4], n[5]};
  for (DevicePlan& plan : plans_) plan.set_distance(initial_distance_);
}

std::vector<at::Tensor> Engine::rates() const { return defined(plans_, &DevicePlan::rates); }
std::vector<at::Tensor> Engine::norms() const { return defined(plans_, &DevicePlan::norms); }
std::vector<at::Tensor> Engine::records() const { return defined(plans_, &DevicePlan::records); }

py::list Engine::private_counts() const {
  py::list counts;
  if (rule_.count_name != nullptr) return counts;
  for (const Parameter& param : parameters_) {
    if (param.count.defined()) {
      counts.append(py::make_tuple(param.object, param.count));
    }
  }
  return counts;
}

}  // namespace lrfast::bindings
