// The optimizer step as Python calls it: finds out what changed since the last step, brings the
// tables up to date, and launches once per device. State tensors belong to the torch.optim object;
// the engine holds their addresses.
#pragma once

#include <optional>

#include "bindings/device_array.h"
#include "bindings/param_groups.h"
#include "bindings/schedules.h"
#include "bindings/slot.h"

namespace lrfast::bindings {

// The tables of the parameters on one device.
struct DevicePlan {
  at::Device device;
  DeviceArray<TensorRow> tensors;
  DeviceArray<const void*> grads;  // [tensors] as the step before this one found them
  DeviceArray<GroupRow> groups;
  DeviceArray<ChunkRow> chunks;
  at::Tensor clock;  // [2] int64: a Clock
  at::Tensor rates;  // [groups] float64: the rates that the last step used
};

class Engine {
 public:
  explicit Engine(const std::string& rule);

  // Updates every parameter that has a gradient. Where states are missing it updates nothing and
  // returns [(group, parameter)], for Python to create them and to call again.
  py::list step(const py::list& param_groups, const py::dict& state);

  // group_schedules: [groups], each an index into schedules or -1. Sets the clock to zero.
  void set_schedules(const std::vector<ScheduleTuple>& schedules,
                     const std::vector<int32_t>& group_schedules);

  // While flag (one float64 on the parameters' device) is not zero, step() changes nothing.
  void watch(std::optional<at::Tensor> flag);

  // Names of the states that a parameter of the group needs, as of the last step() call.
  py::dict state_names(int32_t group) const;

  // Steps applied since the schedule was set: [1] int64 views of each device's clock.
  std::vector<at::Tensor> clocks() const;
  void set_clock(int64_t applied);
  std::vector<at::Tensor> rates() const;

  int64_t rebuilds() const { return rebuilds_; }

 private:
  bool is_current(const py::list& param_groups) const;
  void rebuild(const py::list& param_groups);
  DevicePlan& plan_for(at::Device device, std::vector<DevicePlan>& plans) const;
  void read_groups(const py::list& param_groups);
  void write_groups();
  bool prepare(Slot& slot, const py::dict& state);
  void launch();

  RuleInfo rule_;
  ParamGroupReader reader_;
  ScheduleArrays schedules_;
  std::vector<int32_t> group_schedules_;
  std::vector<py::object> group_objects_;
  std::vector<GroupRow> groups_;
  bool groups_changed_ = true;
  std::vector<Slot> slots_;  // in the order of param_groups
  std::vector<DevicePlan> plans_;
  std::optional<at::Tensor> stop_flag_;
  py::object params_key_;
  py::object state_object_;  // held, so that a new dict cannot have its address
  Py_ssize_t state_size_ = 0;
  int64_t initial_clock_ = 0;  // for plans yet to be made
  int64_t rebuilds_ = 0;
};

}  // namespace lrfast::bindings
