#include "cpu/masters.h"

#include "core/masters.h"
#include "cpu/tasks.h"

namespace lrfast::cpu {
namespace {

// Calls visit(halves, rests) with a tensor's arrays from an element on.
template <class Visitor>
LRFAST_HD void with_rests(const TensorRow& row, int64_t begin, Visitor&& visit) {
  uint16_t* halves = static_cast<uint16_t*>(row.param) + begin;
  if (row.master == sizeof(int8_t)) {
    visit(halves, static_cast<int8_t*>(row.master_bits) + begin);
  } else {
    visit(halves, static_cast<int16_t*>(row.master_bits) + begin);
  }
}

template <class Rest>
LRFAST_HD void join_all(const uint16_t* halves, const Rest* rests, int64_t count,
                        float* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = join_master(halves[i], rests[i]);
}

template <class Rest>
LRFAST_HD void split_all(float* __restrict weights, int64_t count, uint16_t* __restrict halves,
                         Rest* __restrict rests) {
  for (int64_t i = 0; i < count; ++i) split_master(weights[i], halves[i], rests[i]);
}

}  // namespace

LRFAST_CLONES void join_masters(const TensorRow& row, int64_t begin, int64_t end, float* to) {
  with_rests(row, begin, [&](const auto* halves, const auto* rests) {
    join_all(halves, rests, end - begin, to);
  });
}

LRFAST_CLONES void split_masters(const TensorRow& row, int64_t begin, int64_t end, float* weights) {
  with_rests(row, begin,
             [&](auto* halves, auto* rests) { split_all(weights, end - begin, halves, rests); });
}

}  // namespace lrfast::cpu
