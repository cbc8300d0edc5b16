// The rows that host and device share. A plan owns them; a step reads them; nothing else in the
// engine knows what the optimizer holds. Whatever a user changes while training is a value here.
#pragma once

#include <cstdint>

#include "core/dtypes.h"
#include "core/schedule.h"

namespace lrfast {

constexpr int kMaxStates = 4;   // Prodigy: exp_avg, exp_avg_sq, s, p0
constexpr int kMaxHypers = 12;  // Prodigy

// What few tensors have comes last: a tensor of 64 elements is updated in the time of a few cache
// misses.
struct TensorRow {
  void* param;               // [numel]
  void* states[kMaxStates];  // [numel] each, in the order that the rule names them
  void* average;             // [numel] of the type that the arithmetic runs in; null: none is kept
  void* count;               // [] updates applied to this tensor so far; float or double
  double* product;           // [] product of the momenta used so far; may be null
  double* largest;           // [] learning rate so far; may be null
  int64_t numel;
  int32_t group;
  uint32_t number;  // place among the optimizer's parameters
  DtypePair dtypes;
  uint8_t form;     // which of its rule's forms: which states it has
  uint8_t counted;  // 0: its squares are counted elsewhere, where the same elements lie too
  uint8_t counts_in_double;
  uint8_t coded;                // whether its states are in 8 bits
  uint8_t master;               // bytes of master bits beside each element: 0, 1 or 2
  uint8_t* scales[kMaxStates];  // [numel / kCodeBlock] of those, each
  void* direction;    // [numel] of the parameter's type, from the first of two passes for the
                      // second one; null: the tensor has one pass
  void* master_bits;  // [numel] of a half parameter, int8 or int16, as master says
};

struct GroupRow {
  double hypers[kMaxHypers];  // in the order that the rule names them; the rate comes first
  double max_norm;            // clips this group's gradients alone; 0: it shares the optimizer's
  int32_t schedule;           // row in ScheduleTables, or -1
  int32_t frozen;             // 1: parameters, states and counts stay as they are

  bool operator==(const GroupRow&) const = default;
};

struct ChunkRow {  // elements [index * chunk_size, (index + 1) * chunk_size) of a tensor
  int32_t tensor;
  int32_t index;
};

// The distance from the first weights to good ones, as a rule that measures it estimates it for all
// groups; see rules/prodigy.h.
struct Distance {
  double estimate;
  double used;         // the estimate before the one that the running step has made
  double largest;      // of all that were measured
  double numerator;    // of the last measured, as a running sum
  double denominator;  // of the last measured; 0: it had none, and changed nothing
  double count;        // steps with a denominator
};

struct Clock {
  int64_t applied;  // steps applied since the schedule was set
  int64_t steps;    // steps applied in all
  // The next four are for CUDA.
  int32_t blocks_done;    // blocks of the running kernel that have finished
  int32_t decision;       // a Decision, the running kernel's
  int32_t norms_stopped;  // whether the kernel that took this step's norms was stopped
  int32_t measured;       // the Decision of the kernel that measured this step's distance
  Distance distance;
};

// What a kernel does, as the flags were when its first block looked: another stream may set one
// while other blocks have yet to look, and half an update would be worse than either. Numbers that
// another stream may write, the scale of the gradients and that of the learning rates, are read
// once for each chunk: a chunk is updated with the old one or with the new one.
enum Decision : int32_t { kUndecided, kRuns, kIsStopped, kIsSkipped };

// What the host may exchange between two launches of the same CUDA graph: a graph holds the other
// addresses by value, and of these only where this row is.
struct SwappableInputs {
  ScheduleTables schedules;
  const double* rate_scale;  // multiplies every group's rate; may be null
  const double* stop;        // no updates while *stop is not zero; may be null
  double max_norm;           // of the groups that have none of their own, together; 0: none

  bool operator==(const SwappableInputs&) const = default;
};

// How gradients become what the rule sees.
struct GradientOptions {
  const float* scale;      // divides them; may be null
  const float* found_inf;  // the step is skipped where this is not zero; may be null
  bool skip_nonfinite;     // skip the step where their norm is not finite
  bool zero;               // set them to zero afterwards, also where the step is skipped
};

// Sums that a step makes. Without a norm pass, chunk_squares is null, and so are all others.
struct Totals {
  double* chunk_squares;  // [num_chunks] squares of the gradients as they lie in memory
  double* group_squares;  // [num_groups] their sums, also over other devices and processes
  double* norms;          // [num_groups + 2] of the unscaled gradients; then of all, and of those
                          // that share a max_norm
  double* chunk_changes;  // [num_chunks][2] squares of updates and of updated weights; may be null
  double* records;        // [capacity][num_groups][kRecordFields] ring of past steps
  int64_t capacity;
  double* chunk_terms;   // [num_chunks][2] of a pass before the update; null: there is none
  double* terms;         // [2] numerator and denominator of the distance, also over other devices;
                         // null for a rule that measures none
  double* tensor_terms;  // [num_tensors][2] sums over each tensor; null: no option needs them
};

// How the update itself differs from its rule's.
struct UpdateOptions {
  double clipping;         // a tensor's learning rate is divided by its gradient's size in units of
                           // former ones if that is above this; 0: it is not
  bool cautious;           // no step goes against its gradient
  bool cautious_decay;     // decoupled decay only of what the step does not take away from 0
  bool unscheduled_decay;  // decoupled decay goes by the learning rate without its schedule

  LRFAST_HD bool is_cautious() const { return cautious || cautious_decay; }
  LRFAST_HD bool is_altered() const { return is_cautious() || clipping > 0.0; }
};

enum RecordField { kRecordRate, kRecordGradNorm, kRecordUpdateNorm, kRecordWeightNorm };
constexpr int kRecordFields = 4;

// A step is one call, or several. Where gradients' squares are added up over several devices or
// processes, that sum stands between two of them, and so does one of the terms of a distance; where
// a rule has directions, products of matrices stand between making these and moving all parameters.
enum class Phase : uint8_t {
  kWhole,    // the norms, if they are wanted, and the update
  kSquares,  // what the norms are made of
  kMeasure,  // the norms from sums of squares, and the terms of a distance
  kUpdate,   // what of these sums has not been used yet, and the update
  kNorms,    // the norms alone
  kFinish,   // the norms alone, from sums of squares
  kDirections,
  kMoves  // the update, after the directions
};

struct StepTables {
  const TensorRow* tensors;
  void* const* grads;  // [num_tensors], laid out like the parameter; null: no update
  const GroupRow* groups;
  const ChunkRow* chunks;
  const int64_t* group_chunks;    // [num_groups + 1] where each group's chunks begin
  const int64_t* tensor_chunks;   // [num_tensors + 1] where each tensor's terms begin
  const SwappableInputs* inputs;  // []
  ScheduleValues* values;  // [num_groups] CUDA: the schedules' values at the coming step, which
                           // the step before has left here
  Clock* clock;
  double* rates;  // [num_groups] out: the rates that this step used
  GradientOptions gradients;
  UpdateOptions update;
  Totals totals;
  double average_weight;  // 1 - decay of the weights' moving average
  int64_t average_start;  // steps in all before which the average is the weights
  bool average_warms_up;  // whether the decay grows from then on
  bool has_averages;      // whether any tensor keeps one
  bool has_codes;         // whether any tensor's states are in 8 bits
  bool has_masters;       // whether any tensor has master bits
  uint64_t seed;          // of stochastic rounding
  int64_t num_chunks;
  int64_t chunk_size;
  int32_t num_tensors;
  int32_t num_groups;
  Phase phase;
};

}  // namespace lrfast
