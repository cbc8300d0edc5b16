#include "cpu/post_update.h"

#include <cstring>

#include "core/kernel.h"
#include "cpu/masters.h"
#include "cpu/norms.h"
#include "cpu/tasks.h"

namespace lrfast::cpu {
namespace {

template <class Element>
LRFAST_HD void average_range(compute_t<Element>* averages, const Element* params,
                             compute_t<Element> weight, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) average_element(averages[i], to_compute(params[i]), weight);
}

}  // namespace

void zero_chunks(const StepTables& t, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    const ChunkRow chunk = t.chunks[c];
    if (t.grads[chunk.tensor] == nullptr) continue;
    const Range range = range_of(t, chunk);
    zero_tile(t.tensors[chunk.tensor].dtypes, t.grads[chunk.tensor], range.begin, range.end);
  }
}

LRFAST_CLONES void average_tile(const TensorRow& row, double weight, int64_t begin, int64_t end) {
  if (row.master != 0) {
    float weights[kTile];
    join_masters(row, begin, end, weights);
    average_range(static_cast<float*>(row.average) + begin, weights, static_cast<float>(weight),
                  end - begin);
    return;
  }
  with_types(row.dtypes, [&]<class Param, class State>() {
    using T = compute_t<Param>;
    average_range(static_cast<T*>(row.average) + begin,
                  static_cast<const Param*>(row.param) + begin, static_cast<T>(weight),
                  end - begin);
  });
}

void zero_tile(DtypePair dtypes, void* grads, int64_t begin, int64_t end) {
  with_types(dtypes, [&]<class Param, class State>() {
    std::memset(static_cast<Param*>(grads) + begin, 0, (end - begin) * sizeof(Param));
  });
}

LRFAST_CLONES void widen_tile(const TensorRow& row, int64_t begin, int64_t end, double* before) {
  if (row.master != 0) {
    float weights[kTile];
    join_masters(row, begin, end, weights);
    for (int64_t i = 0; i < end - begin; ++i) before[i] = weights[i];
    return;
  }
  with_types(row.dtypes, [&]<class Param, class State>() {
    const Param* params = static_cast<const Param*>(row.param) + begin;
    for (int64_t i = 0; i < end - begin; ++i) before[i] = to_compute(params[i]);
  });
}

LRFAST_CLONES void add_changes(const TensorRow& row, const double* before, int64_t begin,
                               int64_t end, double* sums) {
  double after[kTile];
  double update[kTile];
  widen_tile(row, begin, end, after);
  for (int64_t i = 0; i < end - begin; ++i) update[i] = change_of(before[i], after[i]);
  sums[0] += sum_squares(update, end - begin);
  sums[1] += sum_squares(after, end - begin);
}

}  // namespace lrfast::cpu
