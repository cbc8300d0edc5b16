// Weights with master bits, as floats and back.
#pragma once

#include "core/tables.h"

namespace lrfast::cpu {

// Elements [begin, end) of a tensor that has master bits. What is split becomes what is kept of it.
void join_masters(const TensorRow& row, int64_t begin, int64_t end, float* to);
void split_masters(const TensorRow& row, int64_t begin, int64_t end, float* weights);

}  // namespace lrfast::cpu
