// A schedule as data: segments in tables, tables in tracks, and the one function that evaluates
// them for Python, the CPU step and the CUDA kernels alike.
//
//   segment   one stretch along a shape, from one value to another
//   table     segments in order; may repeat with a period, fade towards a floor, and hold each
//             value for a stride of steps
//   track     tables in order, each with a clock of its own, for one channel
//   schedule  tracks: a product for the rate, perhaps one for the momentum and the weight decay
//
// Building them (and checking that they make sense) is the work of lrfast/schedules.
#pragma once

#include <cstdint>

#include "core/math.h"
#include "core/platform.h"

namespace lrfast {

// How a segment goes from its first value a to its last b, as a function of u in [0, 1]; p: power.
enum class Shape : int32_t {
  kConstant,     // a
  kLinear,       // a + (b - a) u
  kCosine,       // b + (a - b) ((1 + cos(pi u)) / 2)^p
  kExponential,  // a (b / a)^u
  kPolynomial,   // b + (a - b) (1 - u)^p
  kPower,        // a + (b - a) u^p
  kInverse,      // a / (1 + r u)^p with r such that u = 1 gives b
  kRex,          // b + (a - b) (1 - u) / (1 - p u)
  kLookup        // one value per step
};
constexpr const char* kShapeNames[] = {"constant", "linear",  "cosine", "exponential", "polynomial",
                                       "power",    "inverse", "rex",    "lookup"};

struct Segment {
  int64_t begin;    // first step at which this segment applies
  double t0;        // step at which u = 0; need not be an integer, nor equal begin
  double span;      // steps from u = 0 to u = 1
  double from;      // value at u = 0
  double to;        // value at u = 1 and after
  double power;     // p; -p for kInverse, 1 for the shapes that have none
  double prepared;  // ln(b / a) for kExponential, r for kInverse, p for kRex
  int64_t values;   // kLookup: where in ScheduleTables its values begin
  Shape shape;
};

struct Table {    // segments [first, first + count), ordered by begin; their steps count from begin
  int64_t begin;  // first step at which this table applies
  int64_t stride;    // steps for which it stands still: what it counts as one; 1 or more
  int64_t period;    // strides after which its segments start again; 0: never
  double floor;      // in cycle k, t strides after begin, a value's distance from the floor
  double log_gain;   // is multiplied by e^(k log_gain)
  double log_decay;  // and by e^(t log_decay)
  int32_t first;
  int32_t count;
};

enum class Channel : int32_t {
  kRate,        // multiplies the rate
  kMomentum,    // is the momentum (beta1) itself
  kWeightDecay  // multiplies the weight decay
};

struct Track {  // tables [first, first + count), ordered by begin
  int32_t first;
  int32_t count;
  Channel channel;
};

struct Schedule {  // tracks [first, first + count)
  int32_t first;
  int32_t count;
  int32_t cycles_momentum;  // whether one of them is the momentum's
};

struct ScheduleTables {
  const Segment* segments;
  const double* values;
  const Table* tables;
  const Track* tracks;
  const Schedule* schedules;

  bool operator==(const ScheduleTables&) const = default;
};

// The last of count rows that has begun at a step; the first one where none has.
template <class Row>
LRFAST_HD const Row& row_at(const Row* rows, int32_t count, int64_t step) {
  int32_t low = 0;
  int32_t high = count;  // rows before low have begun, from high on they have not
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (rows[middle].begin <= step) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return rows[low > 0 ? low - 1 : 0];
}

// The powers and constants that interpolate() reads, from the one number that a user gives.
inline void prepare_segment(Segment& s, double power) {
  s.power = 1.0;
  if (s.shape == Shape::kExponential) {
    s.prepared = std::log(s.to / s.from);
  } else if (s.shape == Shape::kInverse) {
    s.prepared = std::pow(s.from / s.to, 1.0 / power) - 1.0;
    s.power = -power;
  } else if (s.shape == Shape::kRex) {
    s.prepared = power;
  } else if (s.shape != Shape::kLinear) {
    s.power = power;
  }
}

// A table's log_gain and log_decay. A factor of 0 has no logarithm; the least of these times any
// count but 0 is far below that of any double.
inline double finite_log(double factor) { return std::fmax(std::log(factor), -1e300); }

// Each function is called at one place only: inlined twice, it takes registers from the kernels'
// loops over elements, until those spill.
LRFAST_HD double interpolate(const Segment& s, const double* values, int64_t step) {
  // u and 1 - u are both formed from the step count: 1 - u by subtraction would lose the last
  // digits near the end, where a cosine's value is made of nothing else.
  const double elapsed = static_cast<double>(step) - s.t0;
  const double remaining = (s.t0 + s.span) - static_cast<double>(step);
  if (remaining <= 0.0) return s.to;
  if (elapsed <= 0.0 || s.shape == Shape::kConstant) return s.from;
  if (s.shape == Shape::kLookup) return values[s.values + static_cast<int64_t>(elapsed)];
  const bool is_factor = s.shape == Shape::kExponential || s.shape == Shape::kInverse;
  const bool is_done =
      is_factor || s.shape == Shape::kPower || (s.shape == Shape::kLinear && elapsed < remaining);
  double share = (is_done ? elapsed : remaining) / s.span;  // of the way: done, or still to go
  if (s.shape == Shape::kRex) share /= 1.0 - s.prepared * (elapsed / s.span);
  if (s.shape == Shape::kInverse) share = 1.0 + s.prepared * share;
  if (s.shape == Shape::kCosine) {
    share = sine_of_quarter_turn(share);
    share *= share;
  }
  if (s.shape == Shape::kExponential || s.power != 1.0) {
    share = exponential(s.shape == Shape::kExponential ? s.prepared * share
                                                       : s.power * logarithm(share));
  }
  if (is_factor) return s.from * share;
  return is_done ? s.from + (s.to - s.from) * share : s.to + (s.from - s.to) * share;
}

LRFAST_HD double evaluate(const volatile ScheduleTables& data, const Table& table, int64_t step) {
  // Exact below 2^52 steps; a division of integers takes a kernel's registers.
  const double steps = step > table.begin ? static_cast<double>(step - table.begin) : 0.0;
  const int64_t elapsed = static_cast<int64_t>(std::floor(steps / table.stride));
  const double cycle =
      table.period > 0 ? std::floor(static_cast<double>(elapsed) / table.period) : 0.0;
  const int64_t local = elapsed - static_cast<int64_t>(cycle) * table.period;
  const Segment& segment = row_at(data.segments + table.first, table.count, local);
  const double value = interpolate(segment, data.values, local);
  const double fading = table.log_gain * cycle + table.log_decay * static_cast<double>(elapsed);
  if (fading == 0.0) return value;
  return table.floor + (value - table.floor) * exponential(fading);
}

struct ScheduleValues {
  double rate = 1.0;          // multiplies the group's own rate
  double weight_decay = 1.0;  // multiplies the group's own weight decay
  double momentum = 0.0;      // replaces the group's momentum, if cycles_momentum
  bool cycles_momentum = false;
};

// data: volatile, as five addresses held in registers would make the step's kernels spill.
LRFAST_HD ScheduleValues evaluate_schedule(const volatile ScheduleTables& data, int32_t schedule,
                                           int64_t step) {
  ScheduleValues values;
  if (schedule < 0) return values;
  const Schedule& row = data.schedules[schedule];
  LRFAST_NO_UNROLL
  for (int32_t i = 0; i < row.count; ++i) {
    const Track& track = data.tracks[row.first + i];
    const Table& table = row_at(data.tables + track.first, track.count, step);
    const double value = evaluate(data, table, step);
    if (track.channel == Channel::kRate) values.rate *= value;
    if (track.channel == Channel::kMomentum) values.momentum = value;
    if (track.channel == Channel::kWeightDecay) values.weight_decay *= value;
  }
  values.cycles_momentum = row.cycles_momentum != 0;
  return values;
}

}  // namespace lrfast
