// The optimizer step on the CPU: all groups, tensors and element types in one parallel region, or
// two where the gradients' norm comes first.
#pragma once

#include <cstdint>
#include <vector>

#include "core/rule.h"
#include "core/tables.h"

namespace lrfast::cpu {

// Runs run(begin, end, context) on ranges that make up [0, tasks), at once if it can. The caller
// brings the threads: torch's pool in the extension, std::thread in the sanitizer tests.
using RunTasks = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = void (*)(int64_t tasks, RunTasks run, void* context);

struct Hypers {
  double values[kHyperSlots];
};

// Memory that one step after another uses, so that only the first one allocates.
struct Scratch {
  std::vector<Hypers> hypers;   // [groups] with the schedules' values in place
  std::vector<int64_t> begins;  // [tasks + 1] chunks at which each task begins
};

// rule: place in core/rules.h's list; threads: at most this many tasks at once.
void step(int rule, const StepTables& tables, int threads, ParallelFor parallel_for,
          Scratch& scratch);

}  // namespace lrfast::cpu
