// What a CUDA graph of a training step holds by value and cannot follow when it changes. The same
// is noted on the CPU, where a captured step runs eagerly, so that both refuse the same changes.
#pragma once

#include <cstdint>
#include <vector>

namespace lrfast::bindings {

// What a step does besides the rule. Set by Python whenever the optimizer's attributes change.
struct EngineOptions {
  double max_grad_norm = 0.0;  // of all groups that have none of their own; 0: none
  bool skip_nonfinite = false;
  bool zero_grads = false;
  double ema_decay = -1.0;  // negative: no average is kept
  bool stochastic_rounding = false;
  uint64_t seed = 0;
  int64_t telemetry = 0;  // steps that the ring of records holds; 0: none
};

// A parameter's gradient, by identity.
struct RecordedGradient {
  void* read = nullptr;        // what the step read; null: there was none
  const void* left = nullptr;  // the tensor that the training step left behind
  const void* left_data = nullptr;
  bool requires_grad = false;  // of the parameter
  bool skips_staging = false;  // frozen, so that its dense stand-in was not brought along
};

struct Recording {
  bool is_open = true;  // until the step has run
  int64_t steps = 0;    // must become 1
  int64_t rebuilds = 0;
  bool has_norms = false;
  EngineOptions options;
  std::vector<const void*> hypers;          // tensors in the param groups that are on a GPU
  std::vector<RecordedGradient> gradients;  // [parameters]
};

}  // namespace lrfast::bindings
