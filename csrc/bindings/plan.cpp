#include "bindings/plan.h"

#include <ATen/ops/zeros.h>

#include <cstddef>

#include "bindings/device.h"

namespace lrfast::bindings {
namespace {

// Handing the interpreter to other threads and taking it back costs 0.1 us: as much as 500
// elements.
constexpr int64_t kElementsWorthTheGil = 16384;

// One float64 that the device can read: here holds its value as of now if it lies elsewhere.
const double* double_on(const std::optional<at::Tensor>& scalar, at::Device device,
                        at::Tensor& here) {
  if (!scalar) return nullptr;
  if (scalar->device() == device) return scalar->const_data_ptr<double>();
  if (!here.defined()) {
    here = at::empty({1}, at::TensorOptions().dtype(at::kDouble).device(device));
  }
  here.copy_(scalar->reshape({1}), may_queue_copy(device));
  return here.const_data_ptr<double>();
}

}  // namespace

// Closes the groups before this one in the table of where each group's chunks begin.
void DevicePlan::begin_group(size_t group) {
  const int64_t chunks = static_cast<int64_t>(chunks_.rows().size());
  if (group_chunks_.rows().size() <= group) group_chunks_.edit().resize(group + 1, chunks);
}

int32_t DevicePlan::add(const Parameter& param) {
  const int32_t row = static_cast<int32_t>(tensors_.rows().size());
  tensors_.edit().push_back(param.make_row({}));
  grads_.edit().push_back(nullptr);
  elements_ += param.elements;
  return row;
}

// Cuts all tensors into chunks. Their size is known only now, as it depends on all elements.
void DevicePlan::cut_chunks(int64_t groups) {
  chunk_size_ = chunk_size(device, elements_);
  for (size_t row = 0; row < tensors_.rows().size(); ++row) {
    const TensorRow& tensor = tensors_.rows()[row];
    begin_group(tensor.group);
    tensor_chunks_.edit().push_back(static_cast<int64_t>(chunks_.rows().size()));
    for (int64_t c = 0; c * chunk_size_ < tensor.numel; ++c) {
      chunks_.edit().push_back({static_cast<int32_t>(row), static_cast<int32_t>(c)});
    }
  }
  begin_group(groups);
  tensor_chunks_.edit().push_back(static_cast<int64_t>(chunks_.rows().size()));
}

void DevicePlan::finish(int64_t groups, bool measures) {
  cut_chunks(groups);
  const auto options = at::TensorOptions().device(device);
  rates = at::zeros({groups}, options.dtype(at::kDouble));
  values_ =
      at::empty({groups * static_cast<int64_t>(sizeof(ScheduleValues))}, options.dtype(at::kByte));
  if (!measures) return;
  const int64_t chunks = static_cast<int64_t>(chunks_.rows().size());
  chunk_terms_ = at::zeros({chunks + 1, 2}, options.dtype(at::kDouble));
  terms = at::zeros({2}, options.dtype(at::kDouble));
}

void DevicePlan::read_device_hypers(const std::vector<DeviceHyper>& hypers) {
  if (!device.is_cpu()) return;
  for (const auto& [group, hyper, value] : hypers) {
    groups_.edit()[group].hypers[hyper] = value.item().toDouble();
  }
}

void DevicePlan::copy_device_hypers(const std::vector<DeviceHyper>& hypers) {
  if (device.is_cpu()) return;
  for (const auto& [group, hyper, value] : hypers) {
    const int64_t place = group * static_cast<int64_t>(sizeof(GroupRow) / sizeof(double)) + hyper;
    const at::Tensor numbers = groups_.reserved_on(device).view(at::kDouble);
    numbers.narrow(0, place, 1).copy_(value.reshape({1}), /*non_blocking=*/true);
  }
}

void DevicePlan::set_clock(int64_t place, int64_t steps) {
  clock.narrow(0, place, 1).fill_(steps);
  has_values_ = false;
}

at::Tensor DevicePlan::distance() const {
  constexpr int64_t kWords = sizeof(Distance) / sizeof(double);
  return clock.view(at::kDouble).narrow(0, offsetof(Clock, distance) / sizeof(double), kWords);
}

void DevicePlan::set_distance(const Distance& value) {
  const at::Tensor numbers = distance();
  const double fields[] = {value.estimate,  value.used,        value.largest,
                           value.numerator, value.denominator, value.count};
  for (int64_t i = 0; i < numbers.numel(); ++i) numbers.narrow(0, i, 1).fill_(fields[i]);
}

void DevicePlan::make_totals(const StepSettings& settings) {
  const int64_t telemetry = settings.options.telemetry;
  const bool lacks_norms = settings.wants_norms() && !norms.defined();
  const bool lacks_records = telemetry > 0 && !records.defined();
  const bool lacks_terms = settings.wants_terms() && !tensor_terms_.defined();
  if (!lacks_norms && !lacks_records && !lacks_terms) return;
  TORCH_CHECK(!is_capturing(device),
              "clipping, skip_nonfinite, telemetry or cautious have no memory yet, and cannot get "
              "it while a CUDA graph is captured: make a step before, or use lrfast.capture");
  const auto numbers = at::TensorOptions().dtype(at::kDouble).device(device);
  const int64_t chunks = static_cast<int64_t>(chunks_.rows().size());
  const int64_t groups = rates.numel();
  if (lacks_terms) {
    chunk_terms_ = at::zeros({chunks + 1, 2}, numbers);
    tensor_terms_ = at::zeros({static_cast<int64_t>(tensors_.rows().size()) + 1, 2}, numbers);
  }
  if (lacks_norms) {
    chunk_squares_ = at::zeros({chunks + 1}, numbers);  // never empty: null means none
    squares = at::zeros({groups}, numbers);
    norms = at::zeros({groups + 2}, numbers);
  }
  if (lacks_records) {
    chunk_changes_ = at::zeros({chunks + 1, 2}, numbers);
    records = at::zeros({telemetry, groups, kRecordFields}, numbers);
  }
}

void DevicePlan::drop_records() {
  records.reset();
  chunk_changes_.reset();
}

template <class Visit>
void DevicePlan::visit_arrays(StepTables& tables, const Visit& visit) {
  visit(tensors_, tables.tensors);
  visit(grads_, tables.grads);
  visit(groups_, tables.groups);
  visit(chunks_, tables.chunks);
  visit(group_chunks_, tables.group_chunks);
  visit(tensor_chunks_, tables.tensor_chunks);
  visit(inputs_, tables.inputs);
}

// Of the tensors whose addresses are in every launch.
std::array<at::Tensor*, 11> DevicePlan::memory() {
  return {&clock,          &rates,   &values_,      &chunk_squares_, &squares,      &norms,
          &chunk_changes_, &records, &chunk_terms_, &terms,          &tensor_terms_};
}

// What does not depend on the tables' contents.
StepTables DevicePlan::fixed_tables(const StepSettings& settings) const {
  const EngineOptions& options = settings.options;
  StepTables tables{};
  tables.values = static_cast<ScheduleValues*>(values_.mutable_data_ptr());
  tables.clock = static_cast<Clock*>(clock.mutable_data_ptr());
  tables.rates = rates.mutable_data_ptr<double>();
  tables.gradients.skip_nonfinite = options.skip_nonfinite;
  tables.gradients.zero = options.zero_grads;
  tables.update = options.update;
  tables.average_weight = 1.0 - options.ema_decay;
  tables.average_start = options.ema_start;
  tables.average_warms_up = options.ema_warmup;
  tables.has_codes = options.codes;
  tables.has_masters = options.master_bytes > 0;
  tables.has_averages = options.ema_decay >= 0.0;
  tables.seed = options.seed;
  tables.num_chunks = static_cast<int64_t>(chunks_.rows().size());
  tables.chunk_size = chunk_size_;
  tables.num_tensors = static_cast<int32_t>(tensors_.rows().size());
  tables.num_groups = static_cast<int32_t>(groups_.rows().size());
  if (settings.wants_norms()) {
    tables.totals.chunk_squares = chunk_squares_.mutable_data_ptr<double>();
    tables.totals.group_squares = squares.mutable_data_ptr<double>();
    tables.totals.norms = norms.mutable_data_ptr<double>();
  }
  if (options.telemetry > 0) {
    tables.totals.chunk_changes = chunk_changes_.mutable_data_ptr<double>();
    tables.totals.records = records.mutable_data_ptr<double>();
    tables.totals.capacity = options.telemetry;
  }
  if (settings.measures) {
    tables.totals.chunk_terms = chunk_terms_.mutable_data_ptr<double>();
    tables.totals.terms = terms.mutable_data_ptr<double>();
  }
  if (settings.wants_terms()) {
    tables.totals.chunk_terms = chunk_terms_.mutable_data_ptr<double>();
    tables.totals.tensor_terms = tensor_terms_.mutable_data_ptr<double>();
  }
  return tables;
}

StepTables DevicePlan::current_tables(StepSettings& settings) {
  const SwappableInputs now{
      settings.schedules.on(device), double_on(settings.rate_scale, device, rate_scale_here_),
      double_on(settings.stop_flag, device, stop_here_), settings.options.max_grad_norm};
  if (inputs_.rows().empty() || inputs_.rows()[0] != now) inputs_.edit().assign(1, now);
  StepTables tables = fixed_tables(settings);
  visit_arrays(tables, [&](auto& array, auto& address) { address = array.on(device); });
  if (device.is_cuda() && !has_values_) cuda_calls::schedule(tables, device);
  has_values_ = true;
  return tables;
}

StepTables DevicePlan::captured_tables(const StepSettings& settings, bool is_recording) {
  bool is_current = has_values_;
  StepTables tables = fixed_tables(settings);
  visit_arrays(tables, [&]<class Address>(auto& array, Address& address) {
    is_current = is_current && array.is_current_on(device);
    address = static_cast<Address>(array.reserved_on(device).const_data_ptr());
  });
  TORCH_CHECK(is_current || is_recording,
              "gradients, param groups or schedules have changed since the last step, which a CUDA "
              "graph cannot take note of: zero gradients in place, make a step before the capture, "
              "or use lrfast.capture");
  return tables;
}

// A plan that is new on a stream notes all, too: its clock comes from the plan before.
void DevicePlan::note_stream(StepSettings& settings, const std::vector<Parameter>& parameters) {
  const c10::Stream stream = cuda_calls::current_stream(device);
  if (stream_ == stream) return;
  const auto note = [&](const at::Tensor& tensor) {
    if (tensor.defined() && tensor.device() == device) tensor.record_stream(stream);
  };
  StepTables unused{};
  visit_arrays(unused, [&](auto& array, auto&) { array.visit_on(device, note); });
  settings.schedules.visit_on(device, note);
  for (const at::Tensor* tensor : memory()) note(*tensor);
  for (const at::Tensor& tensor : {stop_here_, rate_scale_here_}) note(tensor);
  for (const auto& scalar : {settings.stop_flag, settings.rate_scale}) {
    if (scalar) note(*scalar);
  }
  for (const Parameter& param : parameters) {
    for (const at::Tensor& tensor :
         {param.staged_param, param.staged_grad, param.count, param.direction}) {
      note(tensor);
    }
  }
  stream_ = stream;
}

std::vector<int64_t> DevicePlan::addresses(StepSettings& settings) {
  std::vector<int64_t> all;
  StepTables tables = current_tables(settings);
  visit_arrays(tables, [&](auto&, const auto* address) {
    all.push_back(reinterpret_cast<int64_t>(address));
  });
  for (const at::Tensor* tensor : memory()) {
    all.push_back(tensor->defined() ? reinterpret_cast<int64_t>(tensor->const_data_ptr()) : 0);
  }
  return all;
}

void DevicePlan::run(int rule, const StepTables& tables) {
  if (elements_ < kElementsWorthTheGil) {
    step(rule, tables, device, scratch_);
  } else {
    const py::gil_scoped_release release;
    step(rule, tables, device, scratch_);
  }
}

DevicePlan& plan_for(at::Device device, std::vector<DevicePlan>& plans,
                     const std::vector<DevicePlan>& previous, const int64_t (&initial_clock)[2],
                     const Distance& initial_distance) {
  for (DevicePlan& plan : plans) {
    if (plan.device == device) return plan;
  }
  at::Tensor clock;
  for (const DevicePlan& before : previous) {
    if (before.device == device) clock = before.clock;
  }
  if (!clock.defined() && !previous.empty()) {
    clock = previous.front().clock.to(device, may_queue_copy(device), /*copy=*/true);
  }
  if (clock.defined()) return plans.emplace_back(device, std::move(clock));
  const auto words = static_cast<int64_t>(sizeof(Clock) / sizeof(int64_t));
  clock = at::zeros({words}, at::TensorOptions().dtype(at::kLong).device(device));
  for (int64_t i = 0; i < 2; ++i) clock.narrow(0, i, 1).fill_(initial_clock[i]);
  plans.emplace_back(device, std::move(clock)).set_distance(initial_distance);
  return plans.back();
}

}  // namespace lrfast::bindings
