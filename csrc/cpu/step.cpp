#include "cpu/step.h"

#include <algorithm>
#include <vector>

#include "core/kernel.h"
#include "core/rules.h"
#include "core/step.h"

// The compiler makes one copy of the element loops per instruction set and picks at load time.
// Sanitizers cannot: their runtime is not up yet when the picking runs.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(LRFAST_NO_CLONES)
#define LRFAST_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define LRFAST_CLONES
#endif

namespace lrfast::cpu {
namespace {

// A chunk costs about as much as this many elements before its first element is touched.
constexpr int64_t kChunkOverhead = 64;
// Elements per task: waking a thread for less is not worth it (torch's own grain size).
constexpr int64_t kMinTaskElements = 32768;

struct Hypers {
  double values[kMaxHypers];
};

// Tensors of one group mostly share their count, and then their scalars: prepare them once.
template <class Rule, class T>
struct ScalarsMemo {
  int32_t group = -1;
  float count = 0;
  double product = 0;
  typename Rule::template Scalars<T> scalars{};

  const typename Rule::template Scalars<T>& get(const TensorRow& row, const Hypers* hypers) {
    const double row_product = row.momentum_product ? *row.momentum_product : 0.0;
    if (row.group != group || *row.count != count || row_product != product) {
      group = row.group;
      count = *row.count;
      product = row_product;
      scalars = prepare<Rule, T>(row, hypers[row.group].values);
    }
    return scalars;
  }
};

template <class Rule>
struct Memos {
  ScalarsMemo<Rule, float> floats;
  ScalarsMemo<Rule, double> doubles;

  template <class T>
  const typename Rule::template Scalars<T>& get(const TensorRow& row, const Hypers* hypers) {
    if constexpr (sizeof(T) == sizeof(float)) {
      return floats.get(row, hypers);
    } else {
      return doubles.get(row, hypers);
    }
  }
};

template <class Rule, uint8_t form, class Param, class State, class Scalars>
LRFAST_HD void update_range(const TensorRow& row, const void* grads, const Scalars& given,
                            int64_t begin, int64_t end) {
  Param* params = static_cast<Param*>(row.param);
  const Param* gradients = static_cast<const Param*>(grads);
  State* states[kMaxStates];
  for (int k = 0; k < kMaxStates; ++k) states[k] = static_cast<State*>(row.states[k]);
  const Scalars scalars = given;  // a local copy: stores to float arrays cannot change it
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) {
    update_element<Rule, form>(
        params[i], gradients[i], [&](int k) -> State& { return states[k][i]; }, scalars);
  }
}

template <class Rule>
LRFAST_CLONES void update_chunks(const StepTables& t, const Hypers* hypers, int64_t begin,
                                 int64_t end) {
  Memos<Rule> memos;
  for (int64_t c = begin; c < end; ++c) {
    const ChunkRow chunk = t.chunks[c];
    if (!is_updated(t, chunk.tensor)) continue;
    const TensorRow& row = t.tensors[chunk.tensor];
    const int64_t first = chunk.index * t.chunk_size;
    const int64_t last = std::min(first + t.chunk_size, row.numel);
    with_types(row.kind, [&]<class Param, class State>() {
      const auto& scalars = memos.template get<compute_t<Param>>(row, hypers);
      with_form<Rule>(row.form, [&]<uint8_t form>() {
        update_range<Rule, form, Param, State>(row, t.grads[chunk.tensor], scalars, first, last);
      });
    });
  }
}

template <class Rule>
std::vector<Hypers> resolve_groups(const StepTables& t) {
  std::vector<Hypers> resolved(t.num_groups);
  int32_t evaluated = -2;  // no schedule has this number
  ScheduleValues values;
  for (int32_t g = 0; g < t.num_groups; ++g) {
    const GroupRow& group = t.groups[g];
    if (group.schedule != evaluated) {
      values = evaluate(t.schedules, group.schedule, t.clock->applied);
      evaluated = group.schedule;
    }
    resolve_hypers<Rule>(group, values, resolved[g].values);
    t.rates[g] = resolved[g].values[Rule::kRate];
  }
  return resolved;
}

// Chunks at which each task begins, so that tasks have about the same work.
std::vector<int64_t> split(const StepTables& t, int threads) {
  int64_t cost = 0;
  auto chunk_cost = [&](int64_t c) {
    const ChunkRow chunk = t.chunks[c];
    if (!is_updated(t, chunk.tensor)) return int64_t{1};
    const int64_t left = t.tensors[chunk.tensor].numel - chunk.index * t.chunk_size;
    return kChunkOverhead + std::min(left, t.chunk_size);
  };
  for (int64_t c = 0; c < t.num_chunks; ++c) cost += chunk_cost(c);
  const int64_t tasks = std::clamp<int64_t>(cost / kMinTaskElements, 1, threads);
  std::vector<int64_t> begins{0};
  int64_t spent = 0;
  for (int64_t c = 0; c < t.num_chunks; ++c) {
    if (spent * tasks >= cost * static_cast<int64_t>(begins.size())) begins.push_back(c);
    spent += chunk_cost(c);
  }
  begins.push_back(t.num_chunks);
  return begins;
}

template <class Rule>
void step_with(const StepTables& t, int threads, ParallelFor parallel_for) {
  const std::vector<Hypers> hypers = resolve_groups<Rule>(t);
  const std::vector<int64_t> begins = split(t, threads);
  const int64_t tasks = static_cast<int64_t>(begins.size()) - 1;
  const auto task = [&](int64_t i) {
    update_chunks<Rule>(t, hypers.data(), begins[i], begins[i + 1]);
  };
  if (tasks == 1) {
    task(0);
  } else {
    parallel_for(tasks, task);
  }
  for (int32_t i = 0; i < t.num_tensors; ++i) {
    if (!is_updated(t, i)) continue;
    advance(t.tensors[i], hypers[t.tensors[i].group].values[Rule::kMomentum]);
  }
  t.clock->applied += 1;
}

}  // namespace

void step(int rule, const StepTables& tables, int threads, ParallelFor parallel_for) {
  if (is_stopped(tables)) return;
  Rules::visit(rule, [&]<class Rule>() { step_with<Rule>(tables, threads, parallel_for); });
}

}  // namespace lrfast::cpu
