// The optimizer step on the CPU: all groups, tensors and element types in one parallel region.
#pragma once

#include <cstdint>
#include <functional>

#include "core/tables.h"

namespace lrfast::cpu {

// Runs body(0) ... body(tasks - 1), at once where it can. The caller brings the threads: torch's
// pool in the extension, std::thread in the sanitizer tests.
using ParallelFor = void (*)(int64_t tasks, const std::function<void(int64_t)>& body);

// rule: place in core/rules.h's list; threads: at most this many tasks at once.
void step(int rule, const StepTables& tables, int threads, ParallelFor parallel_for);

}  // namespace lrfast::cpu
