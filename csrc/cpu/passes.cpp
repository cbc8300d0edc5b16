#include "cpu/passes.h"

#include <algorithm>
#include <cstring>

#include "cpu/tasks.h"

namespace lrfast::cpu {
namespace {

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
        const T value = to_compute(values[i + lane]);
        lanes[lane] += value * value;
      }
    }
    for (const T lane : lanes) sum += lane;
  }
  for (; i < count; ++i) {
    const double value = to_compute(values[i]);
    sum += value * value;
  }
  return sum;
}

template <class Element>
LRFAST_HD void average_range(compute_t<Element>* averages, const Element* params,
                             compute_t<Element> weight, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) average_element(averages[i], to_compute(params[i]), weight);
}

}  // namespace

LRFAST_CLONES void square_chunks(const StepTables& t, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    const ChunkRow chunk = t.chunks[c];
    double& squares = t.totals.chunk_squares[c];
    squares = 0.0;
    if (!is_counted(t, chunk.tensor)) continue;
    const Range range = range_of(t, chunk);
    with_types(t.tensors[chunk.tensor].kind, [&]<class Param, class State>() {
      const Param* grads = static_cast<const Param*>(t.grads[chunk.tensor]);
      squares = sum_squares(grads + range.begin, range.end - range.begin);
    });
  }
}

void zero_chunks(const StepTables& t, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    const ChunkRow chunk = t.chunks[c];
    if (t.grads[chunk.tensor] == nullptr) continue;
    const Range range = range_of(t, chunk);
    zero_tile(t.tensors[chunk.tensor].kind, t.grads[chunk.tensor], range.begin, range.end);
  }
}

LRFAST_CLONES void average_tile(const StepTables& t, const TensorRow& row, int64_t begin,
                                int64_t end) {
  with_types(row.kind, [&]<class Param, class State>() {
    using T = compute_t<Param>;
    average_range(static_cast<T*>(row.average) + begin,
                  static_cast<const Param*>(row.param) + begin, static_cast<T>(t.average_weight),
                  end - begin);
  });
}

void zero_tile(Kind kind, void* grads, int64_t begin, int64_t end) {
  with_types(kind, [&]<class Param, class State>() {
    std::memset(static_cast<Param*>(grads) + begin, 0, (end - begin) * sizeof(Param));
  });
}

LRFAST_CLONES void widen_tile(const TensorRow& row, int64_t begin, int64_t end, double* before) {
  with_types(row.kind, [&]<class Param, class State>() {
    const Param* params = static_cast<const Param*>(row.param) + begin;
    for (int64_t i = 0; i < end - begin; ++i) before[i] = to_compute(params[i]);
  });
}

LRFAST_CLONES void add_changes(const TensorRow& row, const double* before, int64_t begin,
                               int64_t end, double* sums) {
  double after[kTile];
  double change[kTile];
  widen_tile(row, begin, end, after);
  for (int64_t i = 0; i < end - begin; ++i) change[i] = after[i] - before[i];
  sums[0] += sum_squares(change, end - begin);
  sums[1] += sum_squares(after, end - begin);
}

}  // namespace lrfast::cpu
