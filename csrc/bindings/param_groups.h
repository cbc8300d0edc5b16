// Reads hyperparameters from torch.optim's param groups: Python dicts that the user, a scheduler or
// load_state_dict may change at any time. A group whose dict has not changed costs one comparison
// per step, unless it holds values that can change by themselves, such as tensors.
#pragma once

#include <torch/csrc/autograd/python_variable.h>

#include <vector>

#include "bindings/dict_version.h"
#include "bindings/rule_info.h"
#include "core/tables.h"

namespace lrfast::bindings {

// A hyperparameter that a GPU's tensor holds: its value is known on the device alone.
struct DeviceHyper {
  int32_t group;
  int32_t hyper;
  at::Tensor value;
};

class ParamGroupReader {
 public:
  explicit ParamGroupReader(const RuleInfo& rule);

  // Forgets the groups seen so far; count groups follow.
  void reset(size_t count);

  // Whether a read would find what the last one found.
  bool is_unchanged(size_t index, PyObject* group) const {
    return seen_[index].is_fixed && seen_[index].version == version_of(group);
  }

  // Brings row up to date with param_groups[index] and returns whether anything changed. Raises
  // KeyError, TypeError or ValueError, row untouched, for a value that is missing, no number or not
  // finite, or for a negative rate.
  bool read(size_t index, PyObject* group, GroupRow& row);

  // Whether every group has been read, and holds no value that can change without its dict.
  bool all_fixed() const { return unfixed_ == 0; }

  // Hyperparameters to be copied on the device at each step; their places in the rows hold zeros.
  const std::vector<DeviceHyper>& device_hypers() const { return device_hypers_; }

 private:
  struct Seen {
    uint64_t version = 0;
    bool is_fixed = false;  // holds no value that can change without its dict
  };

  py::object value_of(size_t index, py::handle group, size_t hyper) const;
  double to_double(size_t index, int hyper, py::handle value) const;
  double read_max_norm(size_t index, py::handle group) const;
  std::string describe(size_t index, int hyper) const;

  RuleInfo rule_;
  std::vector<py::object> keys_;  // [hypers] interned
  py::object frozen_key_;
  py::object max_norm_key_;
  std::vector<Seen> seen_;  // [groups]
  size_t unfixed_ = 0;      // how many of them are not
  std::vector<DeviceHyper> device_hypers_;
};

// Raises what a step of the rule would raise for these groups' hyperparameters.
void check_groups(const std::string& rule, const py::list& groups);

}  // namespace lrfast::bindings
