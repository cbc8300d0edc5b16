// The passes behind the rules, on a tile of elements while it is in the first cache: the EMA of the
// weights, the zeroing of gradients and the sums for telemetry.
#pragma once

#include "core/tables.h"

namespace lrfast::cpu {

// Elements that stay in the first cache from the rule to the last pass behind it: at most seven
// arrays of doubles.
constexpr int64_t kTile = 512;

// Sets the gradients of chunks [begin, end) to zero, those of frozen groups too.
void zero_chunks(const StepTables& t, int64_t begin, int64_t end);

// The rest works on elements [begin, end) of one tensor.

// Moves the average towards the weights.
void average_tile(const TensorRow& row, double weight, int64_t begin, int64_t end);

void zero_tile(DtypePair dtypes, void* grads, int64_t begin, int64_t end);

// Copies weights, widened, to before.
void widen_tile(const TensorRow& row, int64_t begin, int64_t end, double* before);

// Adds the squares of what has changed since before, and of the weights, to sums[0] and sums[1].
void add_changes(const TensorRow& row, const double* before, int64_t begin, int64_t end,
                 double* sums);

}  // namespace lrfast::cpu
