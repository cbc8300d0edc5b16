// What a CUDA graph of a training step holds by value, and in words what it cannot follow when it
// changes. The same is noted on the CPU, where a captured step runs eagerly, so that both refuse
// the same changes. Everything else lies in tables that stay where they are: nothing is uploaded
// while a graph is captured, and what the host changes afterwards is uploaded before a replay.
#pragma once

#include <string>
#include <vector>

#include "bindings/plan.h"

namespace lrfast::bindings {

// A parameter's gradient, by identity.
struct RecordedGradient {
  void* read = nullptr;        // what the step read; null: there was none
  bool skips_staging = false;  // frozen, so that its dense stand-in was not brought along
  const void* left = nullptr;  // the tensor that the training step left behind
  const void* left_data = nullptr;
  bool requires_grad = false;  // of the parameter

  // Takes what a training step leaves; a replay wants to find the same.
  void mark(const Parameter& param);
  // What has changed since, or an empty string. trains: whether the coming step updates it.
  std::string change_in(const Parameter& param, bool trains) const;
};

struct GraphRecording {
  // Notes the one step that a graph will replay.
  void note_step(const StepSettings& settings, const ParamGroups& groups,
                 const std::vector<Parameter>& parameters, const std::vector<DevicePlan>& plans);
  // What has changed for all parameters, or an empty string.
  std::string change_in(const StepSettings& settings, const ParamGroups& groups) const;

  bool is_open = true;       // until the step has run
  int64_t steps = 0;         // must become 1
  bool is_captured = false;  // whether it went into a graph on every device
  int64_t rebuilds = 0;      // of the engine's tables, when it ran
  bool has_norms = false;
  EngineOptions options;
  py::object settings = py::none();         // of the products
  std::vector<const void*> hypers;          // tensors in the param groups that are on a GPU
  std::vector<RecordedGradient> gradients;  // [parameters]
};

}  // namespace lrfast::bindings
