// The rows that host and device share. A plan owns them; a step reads them; nothing else in the
// engine knows what the optimizer holds. Whatever a user changes while training is a value here.
#pragma once

#include <cstdint>

#include "core/dtypes.h"
#include "core/schedule.h"

namespace lrfast {

constexpr int kMaxStates = 3;  // AdamW with amsgrad: exp_avg, exp_avg_sq, max_exp_avg_sq
constexpr int kMaxHypers = 8;

struct TensorRow {
  void* param;               // [numel]
  void* states[kMaxStates];  // [numel] each, in the order that the rule names them
  float* count;              // [] updates applied to this tensor so far
  double* momentum_product;  // [] product of the beta1 used so far; null unless beta1 is cycled
  int64_t numel;
  int32_t group;
  Kind kind;
  uint8_t form;  // which of its rule's forms: which states it has
};

struct GroupRow {
  double hypers[kMaxHypers];  // in the order that the rule names them; the rate comes first
  int32_t schedule;           // row in ScheduleTables, or -1
  int32_t frozen;             // 1: parameters, states and counts stay as they are
};

struct ChunkRow {  // elements [index * chunk_size, (index + 1) * chunk_size) of a tensor
  int32_t tensor;
  int32_t index;
};

struct Clock {
  int64_t applied;      // steps applied since the schedule was set
  int32_t blocks_done;  // CUDA: blocks of the running step that have finished
};

struct StepTables {
  const TensorRow* tensors;
  const void* const* grads;  // [num_tensors], laid out like the parameter; null: no update
  const GroupRow* groups;
  const ChunkRow* chunks;
  ScheduleTables schedules;
  Clock* clock;
  double* rates;       // [num_groups] out: the rates that this step used
  const double* stop;  // no updates while *stop is not zero; may be null
  int64_t num_chunks;
  int64_t chunk_size;
  int32_t num_tensors;
  int32_t num_groups;
};

}  // namespace lrfast
