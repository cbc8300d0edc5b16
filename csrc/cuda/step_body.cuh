// The bodies of the step's two kernels: a persistent grid walks the flat chunk table, and the last
// block to finish adds up the norms, or advances the counts. They run on the device through step.cu
// and on the host, whole grids of them, in tests/cpp.
#pragma once

#include "core/kernel.h"
#include "core/rule.h"
#include "core/step.h"
#include "cuda/block.cuh"

namespace lrfast::cuda {

// ---- device helpers --------------------------------------------------------------------------

constexpr int kVectorBytes = 16;  // the widest access that a thread can make

template <class Element, int length>
struct alignas(sizeof(Element) * length) Vector {
  Element elements[length];
};

// Length elements from or to memory in one access, of 16 bytes at most.
template <class Element, int length>
LRFAST_HD void copy_vector(const Element* from, Element* to) {
  using Whole = Vector<Element, length>;
  *reinterpret_cast<Whole*>(to) = *reinterpret_cast<const Whole*>(from);
}

LRFAST_HD bool is_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % kVectorBytes == 0;
}

// Makes the compiler fetch from shared memory again what comes after, rather than hold it in
// registers over the loop. Without it AdamW needs up to 83 registers, and at 64 it spills.
LRFAST_HD void forget_registers() { asm volatile("" ::: "memory"); }

// Where the chunk at hand begins in each array; in shared memory.
struct ChunkAddresses {
  void* param;
  void* grad;
  void* states[kMaxStates];
  void* average;
  int64_t begin;  // its first element's index in the tensor
  int count;      // elements
  bool aligned;
};

// Lets the arithmetic on next begin only when done is known. Elements of a vector are independent,
// and the compiler would work on all at once, with registers that it has not: RMSprop on bfloat16
// spilled 72 bytes on sm_100. Other warps fill the waits.
template <class Element>
LRFAST_HD void order([[maybe_unused]] Element& done, [[maybe_unused]] Element& next) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Element) == sizeof(uint16_t)) {
    asm volatile("" : "+h"(done.bits), "+h"(next.bits));
  } else if constexpr (sizeof(Element) == sizeof(float)) {
    asm volatile("" : "+f"(done), "+f"(next));
  } else {
    asm volatile("" : "+d"(done), "+d"(next));
  }
#endif
}

// The gradient's part of a chunk alone.
template <class Param>
LRFAST_HD ChunkAddresses locate_grad(const TensorRow& row, void* grads, int64_t begin,
                                     int64_t chunk_size) {
  const int64_t left = row.numel - begin;
  ChunkAddresses at{};
  at.begin = begin;
  at.grad = static_cast<Param*>(grads) + begin;
  at.count = static_cast<int>(left < chunk_size ? left : chunk_size);
  at.aligned = is_aligned(at.grad);
  return at;
}

template <class Rule, uint8_t form, class Param, class State>
LRFAST_HD ChunkAddresses locate_chunk(const TensorRow& row, void* grads, int64_t begin,
                                      int64_t chunk_size) {
  ChunkAddresses at = locate_grad<Param>(row, grads, begin, chunk_size);
  at.param = static_cast<Param*>(row.param) + begin;
  at.average = row.average ? static_cast<compute_t<Param>*>(row.average) + begin : nullptr;
  at.aligned = at.aligned && is_aligned(at.param) && is_aligned(at.average);
  for (int k = 0; k < Rule::kStates[form].count; ++k) {
    at.states[k] = static_cast<State*>(row.states[k]) + begin;
    at.aligned = at.aligned && is_aligned(at.states[k]);
  }
  return at;
}

// Calls body(first element, number) for this thread's vectors of a chunk, whose number is a
// constant, and then body(element, 1) for its share of the elements behind them.
template <int length, class Body>
LRFAST_HD void walk_chunk(const ChunkAddresses& at, int thread, int threads, Body&& body) {
  const int vectors = at.aligned && length > 1 ? at.count / length : 0;
  if constexpr (length > 1) {
    for (int v = thread; v < vectors; v += threads) body.template operator()<length>(v * length);
  }
  for (int i = vectors * length + thread; i < at.count; i += threads) {
    body.template operator()<1>(i);
  }
}

// Loads and stores of length elements: one at a time, or in vectors.
template <int length, class Element>
LRFAST_HD void load(const void* array, int first, Element* out) {
  const Element* from = static_cast<const Element*>(array) + first;
  if constexpr (length == 1) {
    *out = *from;
  } else {
    copy_vector<Element, length>(from, out);
  }
}
template <int length, class Element>
LRFAST_HD void save(const Element* values, void* array, int first) {
  Element* to = static_cast<Element*>(array) + first;
  if constexpr (length == 1) {
    *to = *values;
  } else {
    copy_vector<Element, length>(values, to);
  }
}

// What a thread adds up for telemetry.
struct Changes {
  double updates = 0.0;
  double weights = 0.0;
};

// Length elements behind the rule: the sums, the weights' average, the zeroing of the gradient.
template <int length, class Param>
LRFAST_HD void finish_elements(const StepTables& t, const ChunkAddresses& at, int first,
                               const Param* before, const Param* after, Changes& changes) {
  using T = compute_t<Param>;
  if (t.totals.chunk_changes) {
    LRFAST_UNROLL
    for (int e = 0; e < length; ++e) {
      const double weight = to_compute(after[e]);
      const double update = weight - to_compute(before[e]);
      changes.updates += update * update;
      changes.weights += weight * weight;
    }
  }
  if (at.average) {
    const T weight = static_cast<T>(t.average_weight);
    alignas(kVectorBytes) T average[length];
    load<length>(at.average, first, average);
    LRFAST_UNROLL
    for (int e = 0; e < length; ++e) average_element(average[e], to_compute(after[e]), weight);
    save<length>(average, at.average, first);
  }
  if (t.gradients.zero) {
    alignas(kVectorBytes) const Param zeros[length] = {};
    save<length>(zeros, at.grad, first);
  }
}

// Elements of a vector: as many as make the widest of its arrays 16 bytes. Doubles go one by one,
// as each fills two registers: in pairs they spill (AdamW 260 bytes on sm_100).
template <bool passes, class Param, class State>
constexpr int vector_length() {
  if (sizeof(Param) == sizeof(double)) return 1;
  size_t widest = sizeof(Param) > sizeof(State) ? sizeof(Param) : sizeof(State);
  if (passes && sizeof(compute_t<Param>) > widest) widest = sizeof(compute_t<Param>);
  return static_cast<int>(kVectorBytes / widest);
}

// This thread's part of a chunk. Indices are ints.
template <class Rule, bool passes, uint8_t form, class Param, class State>
LRFAST_HD Changes update_chunk(const StepTables& t, const ChunkAddresses& at,
                               const Update<Rule, compute_t<Param>>& update, int thread,
                               int threads) {
  constexpr int kStates = Rule::kStates[form].count;
  Changes changes;
  constexpr int kLength = vector_length<passes, Param, State>();
  walk_chunk<kLength>(at, thread, threads, [&]<int length>(int first) {
    alignas(kVectorBytes) Param param[length];
    alignas(kVectorBytes) Param grad[length];
    alignas(kVectorBytes) Param before[length];
    alignas(kVectorBytes) State held[kStates > 0 ? kStates : 1][length];
    forget_registers();
    load<length>(at.param, first, param);
    load<length>(at.grad, first, grad);
    LRFAST_UNROLL
    for (int k = 0; k < kStates; ++k) load<length>(at.states[k], first, held[k]);
    LRFAST_UNROLL
    for (int e = 0; e < length; ++e) {
      if constexpr (passes) before[e] = param[e];
      update_element<Rule, form>(
          param[e], grad[e], [&](int k) -> State& { return held[k][e]; }, update,
          at.begin + first + e);
      if constexpr (length > 1) order(param[e], grad[e + 1 < length ? e + 1 : e]);
    }
    forget_registers();
    save<length>(param, at.param, first);
    LRFAST_UNROLL
    for (int k = 0; k < kStates; ++k) save<length>(held[k], at.states[k], first);
    if constexpr (passes) {
      forget_registers();
      finish_elements<length>(t, at, first, before, param, changes);
    }
  });
  return changes;
}

// This thread's part of a chunk's sum of squares. In float over the few elements of a vector, whose
// sum then goes into a double: double arithmetic per element would be slow on consumer GPUs.
template <class Param>
LRFAST_HD double square_chunk(const ChunkAddresses& at, int thread, int threads) {
  double sum = 0.0;
  walk_chunk<kVectorBytes / sizeof(Param)>(at, thread, threads, [&]<int length>(int first) {
    alignas(kVectorBytes) Param grad[length];
    load<length>(at.grad, first, grad);
    compute_t<Param> squares = 0;
    LRFAST_UNROLL
    for (int e = 0; e < length; ++e) squares += to_compute(grad[e]) * to_compute(grad[e]);
    sum += squares;
  });
  return sum;
}

// Sets this thread's part of a chunk's gradient to zero.
template <class Param>
LRFAST_HD void zero_chunk(const ChunkAddresses& at, int thread, int threads) {
  walk_chunk<kVectorBytes / sizeof(Param)>(at, thread, threads, [&]<int length>(int first) {
    alignas(kVectorBytes) const Param zeros[length] = {};
    save<length>(zeros, at.grad, first);
  });
}

// ---- kernels ---------------------------------------------------------------------------------

constexpr int kMaxThreads = 512;  // in a block

constexpr int kParts = 16;

// What a block adds up: one value per thread, then parts of them, then those, in a fixed order.
struct BlockSums {
  double values[kMaxThreads];
  double parts[kParts];

  template <class Block>
  LRFAST_HD void add_parts(Block& block) {
    block.each([&](int thread) {
      for (int part = thread; part < kParts; part += block.threads()) {
        parts[part] = 0.0;
        for (int i = part; i < block.threads(); i += kParts) parts[part] += values[i];
      }
    });
  }
  LRFAST_HD double total() const {
    double sum = 0.0;
    for (const double part : parts) sum += part;
    return sum;
  }
};

struct NormMemory {  // shared by the block
  BlockSums sums;
  ChunkAddresses at;
  bool is_last;
};

template <class Rule>
struct StepMemory {  // shared by the block
  Update<Rule, float> floats;
  Update<Rule, double> doubles;
  double hypers[kMaxHypers];
  BlockSums updates;
  BlockSums weights;
  ChunkAddresses at;
  int32_t tensor;  // whose scalars are prepared
  bool is_last;

  template <class T>
  LRFAST_HD auto& update() {
    if constexpr (sizeof(T) == sizeof(float)) {
      return floats;
    } else {
      return doubles;
    }
  }
};

// Adds up the chunks of all groups with the whole block: several threads to a group where there are
// few groups. done(group, sum) runs once per group.
template <class Block, class Done>
LRFAST_HD void sum_groups(const StepTables& t, const double* chunks, int width, BlockSums& sums,
                          Block& block, Done&& done) {
  const int groups_at_once = t.num_groups < block.threads() ? t.num_groups : block.threads();
  const int lanes = groups_at_once > 0 ? block.threads() / groups_at_once : 1;
  for (int32_t first = 0; first < t.num_groups; first += groups_at_once) {
    block.each([&](int thread) {
      const int32_t group = first + thread / lanes;
      if (thread / lanes >= groups_at_once || group >= t.num_groups) return;
      sums.values[thread] = sum_chunks(t, chunks, width, group, thread % lanes, lanes);
    });
    block.each([&](int thread) {
      const int32_t group = first + thread;
      if (thread >= groups_at_once || group >= t.num_groups) return;
      double sum = 0.0;
      for (int lane = 0; lane < lanes; ++lane) sum += sums.values[thread * lanes + lane];
      done(group, sum);
    });
  }
}

// The first kernel, where a norm is wanted: the squares of all gradients.
template <class Block>
LRFAST_HD void norm_body(const StepTables& t, NormMemory& shared, Block& block) {
  if (is_stopped(t)) return;
  for (int64_t c = block.index(); c < t.num_chunks; c += block.count()) {
    const ChunkRow chunk = t.chunks[c];
    const TensorRow& row = t.tensors[chunk.tensor];
    const bool is_counted = is_updated(t, chunk.tensor);
    with_types(row.kind, [&]<class Param, class State>() {
      if (is_counted) {
        block.once([&] {
          shared.at = locate_grad<Param>(row, t.grads[chunk.tensor], chunk.index * t.chunk_size,
                                         t.chunk_size);
        });
      }
      block.each([&](int thread) {
        shared.sums.values[thread] =
            is_counted ? square_chunk<Param>(shared.at, thread, block.threads()) : 0.0;
      });
    });
    shared.sums.add_parts(block);
    block.once([&] { t.totals.chunk_squares[c] = shared.sums.total(); });
  }
  block.once([&] { shared.is_last = block.arrive(&t.clock->blocks_done) == block.count() - 1; });
  if (!shared.is_last) return;
  sum_groups(t, t.totals.chunk_squares, 1, shared.sums, block,
             [&](int32_t group, double sum) { t.totals.norms[group] = sum; });
  block.once([&] {
    finish_norms(t);
    t.clock->blocks_done = 0;
  });
}

template <class Rule>
LRFAST_HD void resolve_group(const StepTables& t, int32_t g, double* hypers) {
  const GroupRow& group = t.groups[g];
  const ScheduleValues values = evaluate(t.schedules, group.schedule, t.clock->applied);
  resolve_hypers<Rule>(group, values, hypers);
}

// Everything that happens once per step, after all blocks have read the old counts.
template <class Rule, bool passes, class Block>
LRFAST_HD void finish(const StepTables& t, StepMemory<Rule>& shared, Block& block) {
  block.each([&](int thread) {
    double hypers[kMaxHypers] = {};
    for (int32_t i = thread; i < t.num_tensors; i += block.threads()) {
      if (!is_updated(t, i)) continue;
      const TensorRow& row = t.tensors[i];
      if (row.product) resolve_group<Rule>(t, row.group, hypers);
      advance<Rule>(row, hypers);
    }
    for (int32_t g = thread; g < t.num_groups; g += block.threads()) {
      resolve_group<Rule>(t, g, hypers);
      t.rates[g] = hypers[Rule::kRate];
    }
  });
  if constexpr (passes) {
    if (t.totals.chunk_changes) {
      const double* changes = t.totals.chunk_changes;
      sum_groups(t, changes, 2, shared.updates, block, [&](int32_t group, double sum) {
        write_record(t, group, kRecordUpdateNorm, sum);
      });
      sum_groups(t, changes + 1, 2, shared.weights, block, [&](int32_t group, double sum) {
        write_record(t, group, kRecordWeightNorm, sum);
      });
    }
  }
  block.once([&] {
    advance(*t.clock);
    t.clock->blocks_done = 0;
  });
}
// The scalars of a chunk's tensor, unless they are there from the chunk before.
template <class Rule, class Block>
LRFAST_HD void prepare_tensor(const StepTables& t, int32_t tensor, StepMemory<Rule>& shared,
                              Block& block) {
  if (shared.tensor == tensor) return;
  block.each([](int) {});  // all have read shared.tensor before it changes
  block.once([&] {
    const TensorRow& row = t.tensors[tensor];
    resolve_group<Rule>(t, row.group, shared.hypers);
    forget_registers();
    if (row.kind == Kind::kFloat64) {
      shared.doubles = prepare<Rule, double>(t, row, shared.hypers, PlainPowers());
    } else {
      shared.floats = prepare<Rule, float>(t, row, shared.hypers, PlainPowers());
    }
    shared.tensor = tensor;
  });
}

// Skipped, frozen: nothing but the gradient may change.
template <class Rule, class Block>
LRFAST_HD void leave_chunk(const StepTables& t, int64_t c, StepMemory<Rule>& shared, Block& block) {
  const ChunkRow chunk = t.chunks[c];
  void* grads = t.grads[chunk.tensor];
  if (t.totals.chunk_changes) {
    block.once([&] { t.totals.chunk_changes[2 * c] = t.totals.chunk_changes[2 * c + 1] = 0.0; });
  }
  if (!t.gradients.zero || grads == nullptr) return;
  const TensorRow& row = t.tensors[chunk.tensor];
  with_types(row.kind, [&]<class Param, class State>() {
    block.once([&] {
      shared.at = locate_grad<Param>(row, grads, chunk.index * t.chunk_size, t.chunk_size);
    });
    block.each([&](int thread) { zero_chunk<Param>(shared.at, thread, block.threads()); });
  });
}

// passes: whether averages, zeroing or telemetry are wanted; they cost registers.
template <class Rule, bool passes, class Block>
LRFAST_HD void step_body(const StepTables& t, StepMemory<Rule>& shared, Block& block) {
  if (is_stopped(t)) return;
  const bool skipped = is_skipped(t);
  block.once([&] { shared.tensor = -1; });
  for (int64_t c = block.index(); c < t.num_chunks; c += block.count()) {
    const ChunkRow chunk = t.chunks[c];
    if (skipped || !is_updated(t, chunk.tensor)) {
      if constexpr (passes) leave_chunk(t, c, shared, block);
      continue;
    }
    const TensorRow& row = t.tensors[chunk.tensor];
    prepare_tensor(t, chunk.tensor, shared, block);
    with_types(row.kind, [&]<class Param, class State>() {
      with_form<Rule>(row.form, [&]<uint8_t form>() {
        block.once([&] {
          shared.at = locate_chunk<Rule, form, Param, State>(
              row, t.grads[chunk.tensor], chunk.index * t.chunk_size, t.chunk_size);
        });
        block.each([&](int thread) {
          const Changes changes = update_chunk<Rule, passes, form, Param, State>(
              t, shared.at, shared.template update<compute_t<Param>>(), thread, block.threads());
          if constexpr (passes) {
            shared.updates.values[thread] = changes.updates;
            shared.weights.values[thread] = changes.weights;
          }
        });
      });
    });
    if constexpr (passes) {
      if (t.totals.chunk_changes) {
        shared.updates.add_parts(block);
        shared.weights.add_parts(block);
        block.once([&] {
          t.totals.chunk_changes[2 * c] = shared.updates.total();
          t.totals.chunk_changes[2 * c + 1] = shared.weights.total();
        });
      }
    }
  }
  block.once([&] { shared.is_last = block.arrive(&t.clock->blocks_done) == block.count() - 1; });
  if (!shared.is_last) return;
  if (skipped) {
    block.once([&] { t.clock->blocks_done = 0; });
  } else {
    finish<Rule, passes>(t, shared, block);
  }
}

}  // namespace lrfast::cuda
