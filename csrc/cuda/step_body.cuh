// The body of the step kernel: a persistent grid walks the flat chunk table, and the last block to
// finish advances the counts. It runs on the device through step.cu and on the host, whole grids of
// it, in tests/cpp.
#pragma once

#include "core/kernel.h"
#include "core/rule.h"
#include "core/step.h"
#include "cuda/block.cuh"

namespace lrfast::cuda {

// ---- device helpers --------------------------------------------------------------------------

constexpr int kVectorBytes = 16;  // the widest access that a thread can make

template <class Element, int length>
struct alignas(kVectorBytes) Vector {
  Element elements[length];
};

// Length elements from or to memory, in as many 16-byte accesses as they need.
template <class Element, int length>
LRFAST_HD void copy_vector(const Element* from, Element* to) {
  constexpr int kPiece = kVectorBytes / sizeof(Element);
  for (int k = 0; k < length; k += kPiece) {
    using Piece = Vector<Element, kPiece>;
    *reinterpret_cast<Piece*>(to + k) = *reinterpret_cast<const Piece*>(from + k);
  }
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
  const void* grad;
  void* states[kMaxStates];
  int count;  // elements
  bool aligned;
};

template <class Rule, uint8_t form, class Param, class State>
LRFAST_HD ChunkAddresses locate_chunk(const TensorRow& row, const void* grads, int64_t begin,
                                      int64_t chunk_size) {
  const int64_t left = row.numel - begin;
  ChunkAddresses at;
  at.param = static_cast<Param*>(row.param) + begin;
  at.grad = static_cast<const Param*>(grads) + begin;
  at.count = static_cast<int>(left < chunk_size ? left : chunk_size);
  at.aligned = is_aligned(at.param) && is_aligned(at.grad);
  for (int k = 0; k < Rule::kStates[form].count; ++k) {
    at.states[k] = static_cast<State*>(row.states[k]) + begin;
    at.aligned = at.aligned && is_aligned(at.states[k]);
  }
  return at;
}

// This thread's part of a chunk: whole vectors first, then single elements. Indices are ints.
template <class Rule, uint8_t form, class Param, class State, class Scalars>
LRFAST_HD void update_chunk(const ChunkAddresses& at, const Scalars& scalars, int thread,
                            int threads) {
  constexpr int kStates = Rule::kStates[form].count;
  constexpr int kLength = kVectorBytes / sizeof(Param);
  const int vectors = at.aligned ? at.count / kLength : 0;
  for (int v = thread; v < vectors; v += threads) {
    const int first = v * kLength;
    Vector<Param, kLength> param;
    Vector<Param, kLength> grad;
    Vector<State, kLength> held[kStates > 0 ? kStates : 1];
    forget_registers();
    copy_vector<Param, kLength>(static_cast<const Param*>(at.param) + first, param.elements);
    copy_vector<Param, kLength>(static_cast<const Param*>(at.grad) + first, grad.elements);
    LRFAST_UNROLL
    for (int k = 0; k < kStates; ++k) {
      copy_vector<State, kLength>(static_cast<State*>(at.states[k]) + first, held[k].elements);
    }
    LRFAST_UNROLL
    for (int e = 0; e < kLength; ++e) {
      update_element<Rule, form>(
          param.elements[e], grad.elements[e], [&](int k) -> State& { return held[k].elements[e]; },
          scalars);
    }
    forget_registers();
    copy_vector<Param, kLength>(param.elements, static_cast<Param*>(at.param) + first);
    LRFAST_UNROLL
    for (int k = 0; k < kStates; ++k) {
      copy_vector<State, kLength>(held[k].elements, static_cast<State*>(at.states[k]) + first);
    }
  }
  for (int i = vectors * kLength + thread; i < at.count; i += threads) {
    forget_registers();
    update_element<Rule, form>(
        static_cast<Param*>(at.param)[i], static_cast<const Param*>(at.grad)[i],
        [&](int k) -> State& { return static_cast<State*>(at.states[k])[i]; }, scalars);
  }
}

// ---- kernels ---------------------------------------------------------------------------------

template <class Rule>
struct StepMemory {  // shared by the block
  typename Rule::template Scalars<float> floats;
  typename Rule::template Scalars<double> doubles;
  double hypers[kMaxHypers];
  ChunkAddresses at;
  int32_t tensor;  // whose scalars are prepared
  bool is_last;

  template <class T>
  LRFAST_HD auto& scalars() {
    if constexpr (sizeof(T) == sizeof(float)) {
      return floats;
    } else {
      return doubles;
    }
  }
};

template <class Rule>
LRFAST_HD void resolve_group(const StepTables& t, int32_t g, double* hypers) {
  const GroupRow& group = t.groups[g];
  const ScheduleValues values = evaluate(t.schedules, group.schedule, t.clock->applied);
  resolve_hypers<Rule>(group, values, hypers);
}

// Everything that happens once per step, after all blocks have read the old counts.
template <class Rule, class Block>
LRFAST_HD void finish(const StepTables& t, Block& block) {
  block.each([&](int thread) {
    double hypers[kMaxHypers] = {};
    for (int32_t i = thread; i < t.num_tensors; i += block.threads()) {
      if (!is_updated(t, i)) continue;
      const TensorRow& row = t.tensors[i];
      if (row.momentum_product) resolve_group<Rule>(t, row.group, hypers);
      advance(row, hypers[Rule::kMomentum]);
    }
    for (int32_t g = thread; g < t.num_groups; g += block.threads()) {
      resolve_group<Rule>(t, g, hypers);
      t.rates[g] = hypers[Rule::kRate];
    }
  });
  block.once([&] {
    t.clock->applied += 1;
    t.clock->blocks_done = 0;
  });
}

template <class Rule, class Block>
LRFAST_HD void step_body(const StepTables& t, StepMemory<Rule>& shared, Block& block) {
  if (is_stopped(t)) return;
  block.once([&] { shared.tensor = -1; });
  for (int64_t c = block.index(); c < t.num_chunks; c += block.count()) {
    const ChunkRow chunk = t.chunks[c];
    if (!is_updated(t, chunk.tensor)) continue;
    const TensorRow& row = t.tensors[chunk.tensor];
    const int64_t begin = chunk.index * t.chunk_size;
    if (shared.tensor != chunk.tensor) {
      block.each([](int) {});  // all have read shared.tensor before it changes
      block.once([&] {
        resolve_group<Rule>(t, row.group, shared.hypers);
        shared.floats = prepare<Rule, float>(row, shared.hypers);
        shared.doubles = prepare<Rule, double>(row, shared.hypers);
        shared.tensor = chunk.tensor;
      });
    }
    with_types(row.kind, [&]<class Param, class State>() {
      with_form<Rule>(row.form, [&]<uint8_t form>() {
        block.once([&] {
          shared.at = locate_chunk<Rule, form, Param, State>(row, t.grads[chunk.tensor], begin,
                                                             t.chunk_size);
        });
        block.each([&](int thread) {
          update_chunk<Rule, form, Param, State>(
              shared.at, shared.template scalars<compute_t<Param>>(), thread, block.threads());
        });
      });
    });
  }
  block.once([&] { shared.is_last = block.arrive(&t.clock->blocks_done) == block.count() - 1; });
  if (shared.is_last) finish<Rule>(t, block);
}

}  // namespace lrfast::cuda
