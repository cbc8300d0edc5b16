#include "cpu/masters.h"

#include "core/masters.h"
#include "cpu/tasks.h"

namespace lrfast::cpu {
namespace {

// Calls visit.template operator()<whether they are float16>(halves, rests) with a tensor's arrays
// from an element on.
template <class Visitor>
LRFAST_HD void with_rests(const TensorRow& row, int64_t begin, Visitor&& visit) {
  uint16_t* halves = static_cast<uint16_t*>(row.param) + begin;
  const auto with = [&](auto* rests) {
    if (is_float16(row.dtypes)) return visit.template operator()<true>(halves, rests + begin);
    visit.template operator()<false>(halves, rests + begin);
  };
  if (row.master == sizeof(int8_t)) {
    with(static_cast<int8_t*>(row.master_bits));
  } else {
    with(static_cast<int16_t*>(row.master_bits));
  }
}

template <bool float16, class Rest>
constexpr MasterKind kKind{float16, sizeof(Rest) == 1};

template <bool float16, class Rest>
LRFAST_HD void join_all(const uint16_t* halves, const Rest* rests, int64_t count,
                        float* __restrict to) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = join_master(halves[i], wide_rest(rests[i]), kKind<float16, Rest>);
  }
}

template <bool float16, class Rest>
LRFAST_HD void split_all(float* __restrict weights, int64_t count, uint16_t* __restrict halves,
                         Rest* __restrict rests) {
  for (int64_t i = 0; i < count; ++i) {
    narrow_rest(split_master(weights[i], halves[i], kKind<float16, Rest>), rests[i]);
  }
}

}  // namespace

LRFAST_CLONES void join_masters(const TensorRow& row, int64_t begin, int64_t end, float* to) {
  with_rests(row, begin, [&]<bool float16>(const auto* halves, const auto* rests) {
    join_all<float16>(halves, rests, end - begin, to);
  });
}

LRFAST_CLONES void split_masters(const TensorRow& row, int64_t begin, int64_t end, float* weights) {
  with_rests(row, begin, [&]<bool float16>(auto* halves, auto* rests) {
    split_all<float16>(weights, end - begin, halves, rests);
  });
}

}  // namespace lrfast::cpu
