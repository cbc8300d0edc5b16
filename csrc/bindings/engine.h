// The optimizer step as Python calls it: finds out what changed since the last step, brings the
// tables up to date, and launches once per device. State tensors belong to the torch.optim object;
// the engine holds their addresses.
#pragma once

#include "bindings/directions.h"
#include "bindings/recording.h"

namespace lrfast::bindings {

// A parameter whose states are absent or of no use, and the states that its rule needs.
struct MissingStates {
  int32_t group;
  py::object param;
  std::vector<std::string> tensors;
  const char* count;    // the state that counts updates; null: torch keeps none
  const char* product;  // the state that holds the product of the momenta; null: none
  bool needs_product;
  const char* largest;  // the state that holds the largest learning rate; null: none
};

class Engine {
 public:
  // find_shards(param_groups) says how processes share the parameters: None, or an object with
  // counts(param), whether its squares are counted here, and add(squares), which adds the other
  // processes'. products: of a rule with directions, see Directions; None for others.
  Engine(const std::string& rule, py::object find_shards, py::object products);

  // Updates every parameter that has a gradient and returns None. If states are missing, updates
  // nothing and returns a list of MissingStates, for Python to create them and to call again.
  // grad_scale and found_inf: one float32 each, from a GradScaler.
  py::object step(const py::list& param_groups, const py::dict& state,
                  const std::optional<at::Tensor>& grad_scale,
                  const std::optional<at::Tensor>& found_inf);

  // For a captured step. build() makes all tables, and no states; the one step between begin_ and
  // end_recording(), which says whether it went into a graph, is the one that a graph replays;
  // mark_gradients() notes the gradients that a training step leaves; refresh() brings the tables
  // up to date before a replay. It returns None, or what step() returns if states are missing, or a
  // sentence that says what a graph cannot follow. There is one recording at a time, known by its
  // number.
  void build(const py::list& param_groups);
  int64_t begin_recording();
  bool end_recording();
  void forget_recording(int64_t number);
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
  // scale (one float64 on the parameters' device) multiplies every group's learning rate.
  void scale_rates(std::optional<at::Tensor> scale);

  // The product of the momenta of a group's first count updates, as of the last step() call.
  double product_after(int32_t group, double count) const {
    return groups_.product_after(group, count);
  }

  // Steps applied since the schedule was set, and in all: [2] int64 views of each device's clock.
  std::vector<at::Tensor> clocks() const;
  void set_clock(int64_t applied, int64_t steps);
  // d, d as the last step used it, d_max, d_numerator, d_denom and k, of a rule that measures a
  // distance: [6] float64 views of each device's clock; of others none.
  std::vector<at::Tensor> distances() const;
  void set_distance(const std::array<double, 6>& numbers);
  std::vector<at::Tensor> rates() const;
  // Of the last step that took them: [groups + 2], and the ring [capacity, groups, 4].
  std::vector<at::Tensor> norms() const;
  std::vector<at::Tensor> records() const;
  // Counts of the rules that torch keeps none for: [(parameter, count)].
  py::list private_counts() const;

  int64_t rebuilds() const { return rebuilds_; }

 private:
  void rebuild(const py::list& param_groups);
  void read(const py::list& param_groups, const py::dict& state);
  void read_groups(const py::list& param_groups);
  bool is_recording() const { return recording_ && recording_->is_open; }
  bool has_recorded(int64_t number) const {
    return recording_ && !recording_->is_open && number == recordings_;
  }
  enum class Readiness { kReady, kLacksStates, kStale };
  Readiness prepare(Parameter& param, const py::dict& state);
  Readiness prepare_changed(Parameter& param, const py::dict& state);
  Readiness prepare_left_out(Parameter& param);
  bool reads_grad(const Parameter& param) const;
  bool bind(Parameter& param, const py::dict& state);
  MissingStates missing_states(const Parameter& param) const;
  void update_tables();
  StepTables current_tables(DevicePlan& plan);
  void run(at::ArrayRef<StepTables> tables, Phase phase);
  void add_up(at::Tensor DevicePlan::* sums);
  void launch(const py::dict& state, const std::optional<at::Tensor>& grad_scale,
              const std::optional<at::Tensor>& found_inf);
  void finish_launch();
  void exchange(std::optional<at::Tensor>& held, std::optional<at::Tensor> given);

  RuleInfo rule_;
  py::object find_shards_;
  py::object shards_ = py::none();
  StepSettings settings_;
  ParamGroups groups_;
  Directions directions_;
  std::vector<Parameter> parameters_;  // in the order of param_groups
  std::vector<DevicePlan> plans_;
  std::optional<GraphRecording> recording_;
  int64_t recordings_ = 0;   // begun so far
  py::object state_object_;  // held, so that a new dict cannot have its address
  uint64_t state_version_ = 0;
  int64_t initial_clock_[2] = {0, 0};  // for plans yet to be made
  Distance initial_distance_{};        // likewise
  int64_t rebuilds_ = 0;
};

}  // namespace lrfast::bindings
