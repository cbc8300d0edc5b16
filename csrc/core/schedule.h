// A schedule as data: tables of segments, and the one function that evaluates them for Python, the
// CPU step and the CUDA kernels alike.
//
// Building segments (and checking that they make sense) is lrfast/schedules.py's work.
#pragma once

#include <cstdint>

#include "core/math.h"
#include "core/platform.h"

namespace lrfast {

// How a segment goes from its first value to its last, as a function of u in [0, 1].
enum class Shape : int32_t { kConstant, kLinear, kCosine, kExponential };

struct Segment {
  int64_t begin;     // first step at which this segment applies
  double t0;         // step at which u = 0; need not be an integer, nor equal begin
  double span;       // steps from u = 0 to u = 1
  double from;       // value at u = 0
  double to;         // value at u = 1 and after
  double log_ratio;  // ln(to / from), for kExponential
  Shape shape;
};

struct Table {  // segments [first, first + count), ordered by begin
  int32_t first;
  int32_t count;
};

struct Schedule {
  Table rate_tables;  // tables [first, first + count), whose product multiplies the rate
  int32_t momentum;   // table of the momentum (beta1) itself, or -1
};

struct ScheduleTables {
  const Segment* segments;
  const Table* tables;
  const Schedule* schedules;
};

LRFAST_HD double interpolate(const Segment& s, int64_t step) {
  // u and 1 - u are both formed from the step count: 1 - u by subtraction would lose the last
  // digits near the end, where a cosine's value is made of nothing else.
  const double elapsed = static_cast<double>(step) - s.t0;
  const double remaining = (s.t0 + s.span) - static_cast<double>(step);
  if (remaining <= 0.0) return s.to;
  if (elapsed <= 0.0) return s.from;
  switch (s.shape) {
    case Shape::kConstant:
      return s.from;
    case Shape::kLinear:
      return elapsed < remaining ? s.from + (s.to - s.from) * (elapsed / s.span)
                                 : s.to + (s.from - s.to) * (remaining / s.span);
    case Shape::kCosine: {
      const double sine = sine_of_quarter_turn(remaining / s.span);
      return s.to + (s.from - s.to) * (sine * sine);
    }
    case Shape::kExponential:
      return s.from * exponential(s.log_ratio * (elapsed / s.span));
  }
  return s.to;
}

// The table's value at a step: its last segment that has begun, held at its last value for ever.
LRFAST_HD double evaluate(const Segment* segments, Table table, int64_t step) {
  int32_t low = 0;
  int32_t high = table.count;  // segments before low have begun, from high on they have not
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (segments[table.first + middle].begin <= step) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return interpolate(segments[table.first + (low > 0 ? low - 1 : 0)], step);
}

struct ScheduleValues {
  double rate = 1.0;      // multiplies the group's own rate
  double momentum = 0.0;  // replaces the group's momentum, if cycles_momentum
  bool cycles_momentum = false;
};

LRFAST_HD ScheduleValues evaluate(const ScheduleTables& data, int32_t schedule, int64_t step) {
  ScheduleValues values;
  if (schedule < 0) return values;
  const Schedule& row = data.schedules[schedule];
  for (int32_t i = 0; i < row.rate_tables.count; ++i) {
    values.rate *= evaluate(data.segments, data.tables[row.rate_tables.first + i], step);
  }
  if (row.momentum >= 0) {
    values.momentum = evaluate(data.segments, data.tables[row.momentum], step);
    values.cycles_momentum = true;
  }
  return values;
}

}  // namespace lrfast
