// The tables of the parameters on one device, from the rows that the host edits to the addresses
// that a launch takes.
#pragma once

#include <array>
#include <optional>

#include "bindings/param_groups.h"
#include "bindings/torch_memory.h"
#include "cpu/step.h"

namespace lrfast::bindings {

// What a step needs to know on every device alike.
struct StepSettings {
  EngineOptions options;
  bool groups_clip = false;  // whether any has a norm of its own
  ScheduleArrays schedules;
  std::optional<at::Tensor> stop_flag;   // [] float64: steps change nothing while it is not zero
  std::optional<at::Tensor> rate_scale;  // [] float64: multiplies every group's learning rate
  bool measures = false;                 // a distance, in a pass before the update

  bool wants_norms() const {
    return options.max_grad_norm > 0.0 || options.skip_nonfinite || options.telemetry > 0 ||
           groups_clip;
  }
  bool wants_terms() const { return options.update.cautious || options.update.clipping > 0.0; }
};

class DevicePlan {
 public:
  DevicePlan(at::Device where, at::Tensor its_clock) : device(where), clock(std::move(its_clock)) {}

  // Appends a parameter's rows and returns the place of its own. Groups come in order.
  int32_t add(const Parameter& param);
  void finish(int64_t groups, bool measures);  // behind the last parameter

  void set_row(const Parameter& param, const EngineOptions& options) {
    tensors_.edit()[param.row] = param.make_row(options);
  }
  // The gradient that the coming step reads; null: none.
  void* grad(const Parameter& param) const { return grads_.rows()[param.row]; }
  void set_grad(const Parameter& param, void* grad) {
    if (grads_.rows()[param.row] != grad) grads_.edit()[param.row] = grad;
  }
  void set_groups(const std::vector<GroupRow>& rows) { groups_.edit() = rows; }
  // Hyperparameters whose values a GPU's tensors hold. The CPU's table gets them by a
  // synchronisation; a GPU copies them before its launch, and within a graph, too.
  void read_device_hypers(const std::vector<DeviceHyper>& hypers);
  void copy_device_hypers(const std::vector<DeviceHyper>& hypers);
  void set_clock(int64_t place, int64_t steps);  // 0: applied, 1: in all; see Clock
  at::Tensor distance() const;                   // [6] float64, a view of the clock; see Distance
  void set_distance(const Distance& value);
  // The memory of what a step adds up, as far as it is wanted and not there yet.
  void make_totals(const StepSettings& settings);
  void drop_records();

  // The tables, brought up to date, for a launch that runs now.
  StepTables current_tables(StepSettings& settings);
  // On a GPU, after current_tables(): what another stream has made, parameters' own tensors
  // included, must not be given away, once it is freed, before this stream has used it.
  void note_stream(StepSettings& settings, const std::vector<Parameter>& parameters);
  void forget_stream() { stream_.reset(); }  // so that all is noted again
  // Where the tables will be, for a launch that is captured. What is captured by lrfast.capture
  // (is_recording) may still lack rows: a refresh brings them before the first replay.
  StepTables captured_tables(const StepSettings& settings, bool is_recording);
  // Of all memory that a graph holds by value.
  std::vector<int64_t> addresses(StepSettings& settings);

  void run(int rule, const StepTables& tables);

  const at::Device device;
  at::Tensor clock;    // [words] int64: a Clock
  at::Tensor rates;    // [groups] float64: the learning rates that the last step used
  at::Tensor squares;  // [groups] float64; undefined while no norm is wanted
  at::Tensor norms;    // [groups + 2] float64, likewise
  at::Tensor records;  // [telemetry, groups, kRecordFields] float64; undefined without telemetry
  at::Tensor terms;    // [2] float64; undefined for a rule that measures no distance

 private:
  void begin_group(size_t group);
  void cut_chunks(int64_t groups);
  // visit(array, address) for each table and its address in a launch.
  template <class Visit>
  void visit_arrays(StepTables& tables, const Visit& visit);
  std::array<at::Tensor*, 11> memory();
  StepTables fixed_tables(const StepSettings& settings) const;

  TorchArray<TensorRow> tensors_;
  TorchArray<void*> grads_;  // [tensors]
  TorchArray<GroupRow> groups_;
  TorchArray<ChunkRow> chunks_;
  TorchArray<int64_t> group_chunks_;    // [groups + 1]
  TorchArray<int64_t> tensor_chunks_;   // [tensors + 1]
  TorchArray<SwappableInputs> inputs_;  // [1]
  at::Tensor stop_here_;                // the stop flag and the scale of the learning rates, if
  at::Tensor rate_scale_here_;          // they are on another device
  at::Tensor values_;                   // [groups] ScheduleValues at the coming step; on a GPU
  bool has_values_ = false;             // whether they have been left there
  at::Tensor chunk_squares_;            // [chunks] float64, as squares
  at::Tensor chunk_changes_;            // [chunks, 2] float64, as records
  at::Tensor chunk_terms_;              // [chunks, 2] float64, as terms or tensor_terms_
  at::Tensor tensor_terms_;             // [tensors, 2] float64; undefined while not wanted
  int64_t elements_ = 0;                // of all its parameters
  int64_t chunk_size_ = 0;              // elements, decided when the last parameter is there
  std::optional<c10::Stream> stream_;   // that all memory is noted for; on a GPU
  cpu::Scratch scratch_;
};

// The plan of a device, made if there is none, with the clock of the plans before it: all devices
// count the same steps. initial_clock and initial_distance: for the first plan of all.
DevicePlan& plan_for(at::Device device, std::vector<DevicePlan>& plans,
                     const std::vector<DevicePlan>& previous, const int64_t (&initial_clock)[2],
                     const Distance& initial_distance);

}  // namespace lrfast::bindings
