// The optimizer step as Python calls it: finds out what changed since the last step, brings the
// tables up to date, and launches once per device. State tensors belong to the torch.optim object;
// the engine holds their addresses.
#pragma once

#include <optional>

#include "bindings/param_groups.h"
#include "bindings/recording.h"
#include "bindings/schedules.h"
#include "bindings/slot.h"
#include "bindings/torch_memory.h"
#include "cpu/step.h"

namespace lrfast::bindings {

constexpr int32_t kUnread = -2;  // stands for a group's schedule until the group is read again

// The tables of the parameters on one device.
struct DevicePlan {
  explicit DevicePlan(at::Device where) : device(where) {}

  at::Device device;
  int64_t elements = 0;  // of all its parameters
  TorchArray<TensorRow> tensors;
  TorchArray<void*> grads;  // [tensors] as the step before this one found them
  TorchArray<GroupRow> groups;
  TorchArray<ChunkRow> chunks;
  TorchArray<int64_t> group_chunks;   // [groups + 1]
  TorchArray<LiveRow> live;           // [1]
  at::Tensor stop_here;               // the stop flag and the rates' scale, where they are on
  at::Tensor rate_scale_here;         // another device
  at::Tensor clock;                   // [3] int64: a Clock
  at::Tensor rates;                   // [groups] float64: the rates that the last step used
  at::Tensor values;                  // [groups] ScheduleValues at the coming step; on a GPU
  bool has_values = false;            // whether they have been left there
  at::Tensor chunk_squares;           // [chunks] float64; undefined while no norm is wanted
  at::Tensor squares;                 // [groups] float64, likewise
  at::Tensor norms;                   // [groups + 2] float64, likewise
  at::Tensor chunk_changes;           // [chunks, 2] float64; undefined without telemetry
  at::Tensor records;                 // [telemetry, groups, kRecordFields] float64, likewise
  std::optional<c10::Stream> stream;  // that the memory was last used on; on a GPU
  cpu::Scratch scratch;
};

class Engine {
 public:
  // find_shards(param_groups) says how processes share the parameters: None, or an object with
  // counts(param), whether its squares are counted here, and add(squares), which adds the other
  // processes'.
  Engine(const std::string& rule, py::object find_shards);

  // Updates every parameter that has a gradient. Where states are missing it updates nothing and
  // returns [(group, parameter)], for Python to create them and to call again. grad_scale and
  // found_inf: one float32 each, from a GradScaler.
  py::object step(const py::list& param_groups, const py::dict& state,
                  const std::optional<at::Tensor>& grad_scale,
                  const std::optional<at::Tensor>& found_inf);

  // What a captured step needs (engine_capture.cpp). build() makes all tables, and no states; the
  // one step between begin_ and end_recording() is the one that a graph replays; refresh() brings
  // the tables up to date before a replay. It returns None, or what step() returns where states are
  // missing, or a sentence that says what a graph cannot follow. There is one recording at a time,
  // known by its number.
  void build(const py::list& param_groups);
  int64_t begin_recording();
  void end_recording();
  void forget_recording(int64_t number);
  // Takes note of the gradients that a training step leaves; a replay wants to find the same.
  void mark_gradients(int64_t number);
  py::object refresh(int64_t number, const py::list& param_groups, const py::dict& state);
  // Of everything that a graph holds by value, per device.
  std::vector<std::vector<int64_t>> addresses();

  // group_schedules: [groups], each an index into schedules or -1. Sets the schedules' clock to
  // zero.
  void set_schedules(const std::vector<ScheduleTuple>& schedules,
                     const std::vector<int32_t>& group_schedules);

  void set_options(const EngineOptions& options);

  // While flag (one float64 on the parameters' device) is not zero, step() changes nothing.
  void watch(std::optional<at::Tensor> flag);

  // scale (one float64 on the parameters' device) multiplies every group's rate.
  void scale_rates(std::optional<at::Tensor> scale);

  // Names of the states that a parameter of the group needs, as of the last step() call.
  py::dict state_names(int32_t group) const;

  // Steps applied since the schedule was set, and in all: [2] int64 views of each device's clock.
  std::vector<at::Tensor> clocks() const;
  void set_clock(int64_t applied, int64_t steps);
  std::vector<at::Tensor> rates() const;
  // Of the last step that took them: [groups + 2], and the ring [capacity, groups, 4].
  std::vector<at::Tensor> norms() const;
  std::vector<at::Tensor> records() const;
  // Counts of the rules that torch keeps none for: [(parameter, count)].
  py::list private_counts() const;

  int64_t rebuilds() const { return rebuilds_; }

 private:
  bool is_current(const py::list& param_groups);
  void rebuild(const py::list& param_groups);
  DevicePlan& plan_for(at::Device device, std::vector<DevicePlan>& plans) const;
  void read_groups(const py::list& param_groups);
  void write_groups();
  void look_up_states(const py::dict& state);
  void prefetch(size_t next) const;
  enum class Readiness { kReady, kLacksStates, kStale };
  Readiness prepare(Slot& slot, const py::dict& state);
  Readiness prepare_changed(Slot& slot, const py::dict& state);
  bool bind(Slot& slot, const py::dict& state);
  bool wants_norms() const;
  void check_records() const;
  void make_totals();
  void update_live(DevicePlan& plan);
  StepTables fixed_tables(DevicePlan& plan) const;
  StepTables current_tables(DevicePlan& plan);
  StepTables captured_tables(DevicePlan& plan);
  void note_stream(DevicePlan& plan);
  void copy_device_hypers(DevicePlan& plan);
  bool is_recording() const { return recording_ && recording_->is_open; }
  bool has_recorded(int64_t number) const {
    return recording_ && !recording_->is_open && number == recordings_;
  }
  void record_step();
  std::string change_in_options() const;
  std::string change_in(const Slot& slot, const RecordedGradient& recorded) const;
  void add_squares();
  bool adds_squares() const { return !shards_.is_none() || plans_.size() > 1; }
  void run(at::ArrayRef<StepTables> tables, Part part);
  void launch(const std::optional<at::Tensor>& grad_scale,
              const std::optional<at::Tensor>& found_inf);
  void finish_launch();

  RuleInfo rule_;
  py::object find_shards_;
  py::object shards_ = py::none();
  EngineOptions options_;
  ParamGroupReader reader_;
  ScheduleArrays schedules_;
  std::vector<int32_t> group_schedules_;
  struct HeldGroup {
    py::object object;
    py::object params;     // its list of parameters, as of that version of its dict
    uint64_t version = 0;  // 0: not looked at yet
  };
  std::vector<HeldGroup> held_groups_;
  std::vector<GroupRow> groups_;
  struct Needs {  // what the group's parameters need of their slots
    uint8_t form;
    bool product;
    bool frozen;
  };
  std::vector<Needs> needs_;  // [groups]
  bool groups_unread_ = true;
  bool groups_changed_ = true;
  bool groups_clip_ = false;  // whether any has a norm of its own
  std::vector<Slot> slots_;   // in the order of param_groups
  std::vector<DevicePlan> plans_;
  std::optional<Recording> recording_;
  int64_t recordings_ = 0;  // begun so far
  std::optional<at::Tensor> stop_flag_;
  std::optional<at::Tensor> rate_scale_;
  py::object params_key_;
  py::object state_object_;  // held, so that a new dict cannot have its address
  uint64_t state_version_ = 0;
  int64_t initial_clock_[2] = {0, 0};  // for plans yet to be made
  int64_t rebuilds_ = 0;
};

}  // namespace lrfast::bindings
