// Cuts the chunks of a step into tasks of about the same work and runs them.
#pragma once

#include <algorithm>

#include "core/step.h"
#include "cpu/step.h"

// The compiler makes one copy of the element loops per instruction set and picks at load time.
// Sanitizers cannot: their runtime is not up yet when the picking runs.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(LRFAST_NO_CLONES)
#define LRFAST_HAS_CLONES
#define LRFAST_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define LRFAST_CLONES
#endif

namespace lrfast::cpu {

// A chunk costs about as much as this many elements before its first element is touched.
constexpr int64_t kChunkOverhead = 64;
// Elements per task: waking a thread for less is not worth it (torch's own grain size).
constexpr int64_t kMinTaskElements = 32768;

// The elements [begin, end) of a tensor that a chunk holds.
struct Range {
  int64_t begin;
  int64_t end;
};

inline Range range_of(const StepTables& t, ChunkRow chunk) {
  const int64_t begin = chunk.index * t.chunk_size;
  return {begin, std::min(begin + t.chunk_size, t.tensors[chunk.tensor].numel)};
}

inline int64_t chunk_cost(const StepTables& t, int64_t c) {
  const ChunkRow chunk = t.chunks[c];
  if (!is_updated(t, chunk.tensor)) return 1;
  const Range range = range_of(t, chunk);
  return kChunkOverhead + range.end - range.begin;
}

// Fills begins with the chunk at which each task begins, and the number of chunks behind them.
inline void split(const StepTables& t, int threads, std::vector<int64_t>& begins) {
  begins.assign(1, 0);
  int64_t cost = 0;
  for (int64_t c = 0; threads > 1 && c < t.num_chunks; ++c) cost += chunk_cost(t, c);
  const int64_t tasks = std::clamp<int64_t>(cost / kMinTaskElements, 1, threads);
  int64_t spent = 0;
  for (int64_t c = 0; tasks > 1 && c < t.num_chunks; ++c) {
    if (spent * tasks >= cost * static_cast<int64_t>(begins.size())) begins.push_back(c);
    spent += chunk_cost(t, c);
  }
  begins.push_back(t.num_chunks);
}

// body(begin, end) for each task's chunks.
template <class Body>
void run_tasks(const std::vector<int64_t>& begins, ParallelFor parallel_for, const Body& body) {
  struct Context {
    const std::vector<int64_t>& begins;
    const Body& body;
  } context{begins, body};
  const auto run = [](int64_t first, int64_t last, void* given) {
    const Context& c = *static_cast<Context*>(given);
    for (int64_t task = first; task < last; ++task) c.body(c.begins[task], c.begins[task + 1]);
  };
  const int64_t tasks = static_cast<int64_t>(begins.size()) - 1;
  if (tasks == 1) {
    run(0, 1, &context);
  } else {
    parallel_for(tasks, run, &context);
  }
}

}  // namespace lrfast::cpu
