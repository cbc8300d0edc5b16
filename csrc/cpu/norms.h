// The pass before the rules: sums of squares of the gradients, for their norms.
#pragma once

#include <algorithm>

#include "core/kernel.h"
#include "core/tables.h"

namespace lrfast::cpu {

// A sum keeps one float per lane, so that it vectorises and its order is the same everywhere, and
// empties them into a double after so many rounds that their errors stay below 2^-19 of the sum.
constexpr int64_t kLanes = 16;
constexpr int64_t kRounds = 32;

template <class Element>
LRFAST_HD double sum_squares(const Element* values, int64_t count) {
  using T = compute_t<Element>;
  double sum = 0.0;
  int64_t i = 0;
  while (count - i >= kLanes) {
    T lanes[kLanes] = {};
    const int64_t rounds = std::min(kRounds, (count - i) / kLanes);
    for (int64_t round = 0; round < rounds; ++round, i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        add_square(lanes[lane], to_compute(values[i + lane]));
      }
    }
    for (const T lane : lanes) sum += lane;
  }
  for (; i < count; ++i) add_square(sum, static_cast<double>(to_compute(values[i])));
  return sum;
}

// Squares of the gradients of chunks [begin, end), into totals.chunk_squares.
void square_chunks(const StepTables& t, int64_t begin, int64_t end);

}  // namespace lrfast::cpu
