// torch.optim's param groups as rows: Python dicts that the user, a scheduler or load_state_dict
// may change at any time. A group whose dict has not changed costs one comparison per step, unless
// it holds values that can change by themselves, such as tensors.
#pragma once

#include <torch/csrc/autograd/python_variable.h>

#include <vector>

#include "bindings/parameter.h"
#include "bindings/schedules.h"

namespace lrfast::bindings {

// A hyperparameter that a GPU's tensor holds: its value is known on the device alone.
struct DeviceHyper {
  int32_t group;
  int32_t hyper;
  at::Tensor value;
};

// What a group asks of its parameters.
struct GroupNeeds {
  uint8_t form;  // of their states
  bool product;
  bool frozen;
};

class ParamGroups {
 public:
  explicit ParamGroups(const RuleInfo& rule);
  // Whether these are the groups that were taken last, with the same parameters in them.
  bool are_held(const py::list& param_groups, const std::vector<Parameter>& parameters);
  // Takes other groups, to be read anew.
  void reset(const py::list& param_groups);
  // group_schedules: [groups], each an index into the schedules or -1.
  void set_schedules(const std::vector<int32_t>& group_schedules);
  // Brings the rows up to date. Raises KeyError, TypeError or ValueError for a value that is
  // missing, no number or not finite, or for a negative learning rate.
  void read(const py::list& param_groups, const ScheduleArrays& schedules);

  const std::vector<GroupRow>& rows() const { return rows_; }
  // Whether rows have changed since this was asked last.
  bool take_change() { return std::exchange(is_changed_, false); }
  const GroupNeeds& needs(int32_t group) const { return needs_[group]; }
  const py::object& object(int32_t group) const { return held_[group].object; }
  // Whether any has a norm of its own.
  bool clip() const { return clip_; }
  // Hyperparameters to be copied on the device at each step; their places in the rows hold zeros.
  const std::vector<DeviceHyper>& device_hypers() const { return device_hypers_; }

  // The product of the momenta of a group's first count updates. Synchronises with a GPU that holds
  // a hyperparameter.
  double product_after(int32_t group, double count) const;

  // Raises what read() would raise for these groups' hyperparameters.
  static void check(const std::string& rule, const py::list& groups);

 private:
  struct HeldGroup {
    py::object object;
    py::object params;          // its list of parameters, as of that version of its dict
    uint64_t version = 0;       // 0: not looked at yet
    uint64_t read_version = 0;  // of its dict when its row was read
    size_t kind = 0;            // among the rule's kinds of groups
    bool is_fixed = false;      // holds no value that can change without its dict
  };

  bool read_row(size_t index, PyObject* group, GroupRow& row);
  // For a group whose learning rate is a half tensor on the CPU.
  void round_decay(size_t index, PyObject* group, double* hypers) const;
  const std::vector<HyperName>& hypers(size_t index) const {
    return rule_.kinds[held_[index].kind].hypers;
  }
  size_t read_kind(size_t index, PyObject* group) const;
  py::object value_of(size_t index, py::handle group, size_t hyper) const;
  double to_double(size_t index, int hyper, py::handle value) const;
  double read_max_norm(size_t index, py::handle group) const;
  std::string describe(size_t index, int hyper) const;

  RuleInfo rule_;
  std::vector<std::vector<py::object>> keys_;  // [kinds][hypers] interned
  py::object rule_key_;
  py::object params_key_;
  py::object frozen_key_;
  py::object max_norm_key_;
  std::vector<HeldGroup> held_;  // [groups], as all that follow
  std::vector<GroupRow> rows_;
  std::vector<GroupNeeds> needs_;
  std::vector<int32_t> schedules_;
  std::vector<DeviceHyper> device_hypers_;
  size_t unfixed_ = 0;  // how many groups may change without their dict
  bool is_unread_ = true;
  bool is_changed_ = true;
  bool clip_ = false;
};

}  // namespace lrfast::bindings
