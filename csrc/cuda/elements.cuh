// What one thread does to the elements of a chunk: loads and stores in vectors, the rule, and the
// passes behind it.
#pragma once

#include "core/kernel.h"
#include "core/masters.h"
#include "core/rule.h"
#include "core/step.h"
#include "cuda/block.cuh"

namespace lrfast::cuda {

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
LRFAST_HD void reload_barrier() { asm volatile("" ::: "memory"); }

// A parameter with master bits: a bfloat16, or a float16 if its chunk says so, because a type for
// each would be another copy of every rule.
struct MasterHalf {
  uint16_t bits;
};

// Where the chunk at hand begins in each array; in shared memory.
struct ChunkAddresses {
  void* param;
  void* grad;
  void* states[kMaxStates];
  uint8_t* scales[kMaxStates];  // of states in 8 bits
  void* average;
  void* master_bits;
  int64_t begin;      // its first element's index in the tensor
  int count;          // elements
  MasterKind master;  // of a MasterHalf
  bool aligned;
};

// A weight as a thread holds it, and the gradient of its parameter.
template <class Param>
struct ElementTypes {
  using Weight = Param;
  using Grad = Param;
};
template <>
struct ElementTypes<MasterHalf> {
  using Weight = float;
  using Grad = MasterHalf;
};
template <class Param>
using weight_t = typename ElementTypes<Param>::Weight;
template <class Param>
using grad_t = typename ElementTypes<Param>::Grad;

// Lets the arithmetic on next begin only when done is known. Elements of a vector are independent,
// and the compiler would work on all at once, with registers that it has not: RMSprop on bfloat16
// spilled 72 bytes on sm_100. Other warps fill the waits.
template <class Done, class Next>
LRFAST_HD void serialize([[maybe_unused]] Done& done, [[maybe_unused]] Next& next) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Next) == sizeof(uint16_t) && sizeof(Done) == sizeof(float)) {
    asm volatile("" : "+f"(done), "+h"(next.bits));
  } else if constexpr (sizeof(Next) == sizeof(uint16_t)) {
    asm volatile("" : "+h"(done.bits), "+h"(next.bits));
  } else if constexpr (sizeof(Done) == sizeof(uint16_t)) {
    asm volatile("" : "+f"(next) : "h"(done.bits));
  } else if constexpr (sizeof(Next) == sizeof(float)) {
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
  at.aligned = at.aligned && begin % 2 == 0;  // two neighbours share their noise
  at.param = static_cast<Param*>(row.param) + begin;
  at.average = row.average ? static_cast<compute_t<Param>*>(row.average) + begin : nullptr;
  at.aligned = at.aligned && is_aligned(at.param) && is_aligned(at.average);
  for (int k = 0; k < Rule::kStates[form].count; ++k) {
    at.states[k] = static_cast<State*>(row.states[k]) + begin;
    at.aligned = at.aligned && is_aligned(at.states[k]);
  }
  if constexpr (std::is_same_v<Param, MasterHalf>) {
    at.master = {is_float16(row.dtypes), row.master == sizeof(int8_t)};
    at.master_bits = static_cast<char*>(row.master_bits) + begin * row.master;
    at.aligned = at.aligned && is_aligned(at.master_bits);
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

// An array lies in the GPU's memory. Its address comes through shared memory, where the compiler
// loses sight of that, and generic accesses look up at run time which memory an address is in.
LRFAST_HD void assume_global([[maybe_unused]] const void* array) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(array));
#endif
}

// Loads and stores of length elements: one at a time, or in vectors.
template <int length, class Element>
LRFAST_HD void load(const void* array, int first, Element* out) {
  assume_global(array);
  const Element* from = static_cast<const Element*>(array) + first;
  if constexpr (length == 1) {
    *out = *from;
  } else {
    copy_vector<Element, length>(from, out);
  }
}
template <int length, class Element>
LRFAST_HD void save(const Element* values, void* array, int first) {
  assume_global(array);
  Element* to = static_cast<Element*>(array) + first;
  if constexpr (length == 1) {
    *to = *values;
  } else {
    copy_vector<Element, length>(values, to);
  }
}

// The same of a vector of which some elements, or an aligned address, may be missing.
template <int length, class Element>
LRFAST_HD void load_part(const void* array, int first, int count, bool is_whole, Element* out) {
  if (is_whole) return load<length>(array, first, out);
  LRFAST_UNROLL
  for (int e = 0; e < length; ++e) {
    out[e] = Element{};
    if (first + e < count) load<1>(array, first + e, &out[e]);
  }
}
template <int length, class Element>
LRFAST_HD void save_part(const Element* values, void* array, int first, int count, bool is_whole) {
  if (is_whole) return save<length>(values, array, first);
  LRFAST_UNROLL
  for (int e = 0; e < length; ++e) {
    if (first + e < count) save<1>(&values[e], array, first + e);
  }
}

// What parameters lack, in one byte or two for each.
template <class Rest, int length>
LRFAST_HD void load_rests(const ChunkAddresses& at, int first, bool is_whole, int32_t* out) {
  alignas(kVectorBytes) Rest rests[length];
  load_part<length>(at.master_bits, first, at.count, is_whole, rests);
  LRFAST_UNROLL
  for (int e = 0; e < length; ++e) out[e] = wide_rest(rests[e]);
}
template <class Rest, int length>
LRFAST_HD void save_rests(const int32_t* values, const ChunkAddresses& at, int first,
                          bool is_whole) {
  alignas(kVectorBytes) Rest rests[length];
  LRFAST_UNROLL
  for (int e = 0; e < length; ++e) narrow_rest(values[e], rests[e]);
  save_part<length>(rests, at.master_bits, first, at.count, is_whole);
}

// The same of weights, which may lie in two arrays. What is saved becomes what is kept of it.
template <int length, class Param>
LRFAST_HD void load_weights(const ChunkAddresses& at, int first, bool is_whole,
                            weight_t<Param>* out) {
  if constexpr (!std::is_same_v<Param, MasterHalf>) {
    load_part<length>(at.param, first, at.count, is_whole, out);
  } else {
    alignas(kVectorBytes) MasterHalf halves[length];
    int32_t rests[length];
    load_part<length>(at.param, first, at.count, is_whole, halves);
    if (at.master.is_short) {
      load_rests<int8_t, length>(at, first, is_whole, rests);
    } else {
      load_rests<int16_t, length>(at, first, is_whole, rests);
    }
    LRFAST_UNROLL
    for (int e = 0; e < length; ++e) out[e] = join_master(halves[e].bits, rests[e], at.master);
  }
}
template <int length, class Param>
LRFAST_HD void save_weights(weight_t<Param>* weights, const ChunkAddresses& at, int first,
                            bool is_whole) {
  if constexpr (!std::is_same_v<Param, MasterHalf>) {
    save_part<length>(weights, at.param, first, at.count, is_whole);
  } else {
    alignas(kVectorBytes) MasterHalf halves[length];
    int32_t rests[length];
    LRFAST_UNROLL
    for (int e = 0; e < length; ++e) {
      rests[e] = split_master(weights[e], halves[e].bits, at.master);
    }
    save_part<length>(halves, at.param, first, at.count, is_whole);
    if (at.master.is_short) {
      save_rests<int8_t, length>(rests, at, first, is_whole);
    } else {
      save_rests<int16_t, length>(rests, at, first, is_whole);
    }
  }
}

template <class Param>
LRFAST_HD weight_t<Param> kept_weight(const ChunkAddresses& at, weight_t<Param> weight) {
  if constexpr (std::is_same_v<Param, MasterHalf>) return round_master(weight, at.master);
  return weight;
}

// A gradient as the arithmetic takes it.
template <class Param>
LRFAST_HD auto widened_grad([[maybe_unused]] const ChunkAddresses& at, const grad_t<Param>& grad) {
  if constexpr (std::is_same_v<Param, MasterHalf>) {
    return at.master.is_float16 ? to_compute(Float16{grad.bits}) : to_compute(BFloat16{grad.bits});
  } else {
    return grad;
  }
}

// What a thread adds up for telemetry.
struct Changes {
  double updates = 0.0;
  double weights = 0.0;
};

// An element's change, as telemetry counts it.
template <class Weight>
LRFAST_HD void count_change(const Weight& before, const Weight& after, Changes& changes) {
  const double weight = to_compute(after);
  add_square(changes.updates, change_of(to_compute(before), weight));
  add_square(changes.weights, weight);
}

// Length elements behind the rule: the weights' average, the zeroing of the gradient.
template <int length, class Param>
LRFAST_HD void finish_elements(const StepTables& t, const ChunkAddresses& at,
                               const compute_t<Param>& average_weight, int first,
                               const weight_t<Param>* after) {
  using T = compute_t<Param>;
  if (at.average) {
    alignas(kVectorBytes) T average[length];
    load<length>(at.average, first, average);
    LRFAST_UNROLL
    for (int e = 0; e < length; ++e) {
      average_element(average[e], to_compute(after[e]), average_weight);
    }
    save<length>(average, at.average, first);
  }
  if (t.gradients.zero) {
    alignas(kVectorBytes) const grad_t<Param> zeros[length] = {};
    save<length>(zeros, at.grad, first);
  }
}

// Elements of a vector: as many as make the widest of its arrays 16 bytes. Doubles go one by one,
// as each fills two registers: in pairs they spill (AdamW 260 bytes on sm_100). Of arrays that are
// rounded at random, five of eight elements each spill too (AdamW with amsgrad 12 bytes on sm_90).
template <bool passes, int states, class Param, class State>
constexpr int vector_length() {
  if (sizeof(Param) == sizeof(double)) return 1;
  if (states > 2 && std::is_same_v<State, StochasticBFloat16>) return 4;
  size_t widest = sizeof(Param) > sizeof(State) ? sizeof(Param) : sizeof(State);
  if (passes && sizeof(compute_t<Param>) > widest) widest = sizeof(compute_t<Param>);
  return static_cast<int>(kVectorBytes / widest);
}

// Two neighbours whose values are rounded at random: one hash and one conversion serve both.
template <class Rule, uint8_t form, bool cautious, int length, class Param, class State>
LRFAST_HD void update_pair(Param* param, const Param* grad, State (*held)[length], int e,
                           const Update<Rule, float>& update, uint32_t pair) {
  constexpr int kStates = applied_states<Rule, form>();
  float values[2];
  float grads[2];
  float states[kStates > 0 ? kStates : 1][2];
  to_compute(&param[e], values);
  to_compute(&grad[e], grads);
  if (e > 0) serialize(param[e - 1], grads[0]);
  LRFAST_UNROLL
  for (int i = 0; i < 2; ++i) {
    if (i > 0) serialize(values[0], grads[1]);
    LRFAST_UNROLL
    for (int k = 0; k < kStates; ++k) {
      states[k][i] = i == 0 ? to_compute(held[k][e]) : second_to_compute(&held[k][e]);
    }
    update_element<Rule, form, cautious>(
        values[i], grads[i], [&](int k) -> float& { return states[k][i]; }, update, 0);
  }
  const uint32_t common = update.noise.of_pair(pair);
  from_compute(values, &param[e], Noise::of_value(common, 0));
  LRFAST_UNROLL
  for (int k = 0; k < kStates; ++k) {
    if constexpr (std::is_same_v<State, StochasticBFloat16>) {
      from_compute(states[k], &held[k][e], Noise::of_value(common, k + 1));
    } else {
      for (int i = 0; i < 2; ++i) from_compute(states[k][i], held[k][e + i]);
    }
  }
}

// This thread's part of a chunk. Indices are ints.
template <class Rule, bool passes, bool cautious, uint8_t form, class Param, class State>
LRFAST_HD Changes update_chunk(const StepTables& t, const ChunkAddresses& at,
                               const Update<Rule, compute_t<Param>>& update, int thread,
                               int threads) {
  constexpr int kStates = applied_states<Rule, form>();
  Changes changes;
  constexpr int kLength = vector_length<passes, kStates, Param, State>();
  walk_chunk<kLength>(at, thread, threads, [&]<int length>(int first) {
    alignas(kVectorBytes) weight_t<Param> param[length];
    alignas(kVectorBytes) grad_t<Param> grad[length];
    [[maybe_unused]] alignas(kVectorBytes) weight_t<Param> before[length];
    alignas(kVectorBytes) State held[kStates > 0 ? kStates : 1][length];
    reload_barrier();
    load_weights<length, Param>(at, first, true, param);
    load<length>(at.grad, first, grad);
    LRFAST_UNROLL
    for (int k = 0; k < kStates; ++k) load<length>(at.states[k], first, held[k]);
    if constexpr (passes) {
      LRFAST_UNROLL
      for (int e = 0; e < length; ++e) before[e] = param[e];
    }
    constexpr bool kInPairs = length > 1 && std::is_same_v<Param, StochasticBFloat16>;
    LRFAST_UNROLL
    for (int e = 0; e < length; e += kInPairs ? 2 : 1) {
      if constexpr (kInPairs) {
        const uint32_t pair =
            static_cast<uint32_t>(at.begin >> 1) + static_cast<uint32_t>(first + e) / 2;
        update_pair<Rule, form, cautious, length>(param, grad, held, e, update, pair);
      } else {
        update_element<Rule, form, cautious>(
            param[e], widened_grad<Param>(at, grad[e]), [&](int k) -> State& { return held[k][e]; },
            update, at.begin + first + e);
        if constexpr (length > 1) serialize(param[e], grad[e + 1 < length ? e + 1 : e]);
      }
    }
    reload_barrier();
    save_weights<length, Param>(param, at, first, true);
    LRFAST_UNROLL
    for (int k = 0; k < kStates; ++k) save<length>(held[k], at.states[k], first);
    if constexpr (passes) {
      reload_barrier();
      if (t.totals.chunk_changes) {
        LRFAST_UNROLL
        for (int e = 0; e < length; ++e) count_change(before[e], param[e], changes);
      }
      finish_elements<length, Param>(t, at, update.average_weight, first, param);
    }
  });
  return changes;
}

// A warp holds a block of codes, each lane a vector of neighbours in each part of the block.
constexpr int kLaneVector = 4;  // elements: 16 bytes of floats
constexpr int kBlockPart = kWarp * kLaneVector;
constexpr int kBlockParts = static_cast<int>(kCodeBlock) / kBlockPart;

template <class Rule, uint8_t form, class State>
constexpr bool kMayBeCoded = kCodesOnCuda<Rule> && std::is_same_v<State, float> &&
                             Rule::kStates[form].kinds[0] != StateKind::kWide &&
                             Rule::kStates[form].count <= kMostCodedOnCuda;

// Which states are means of squares, as bits.
template <class Rule, uint8_t form>
constexpr uint32_t positive_states() {
  uint32_t found = 0;
  for (int k = 0; k < Rule::kStates[form].count; ++k) {
    if (Rule::kStates[form].kinds[k] == StateKind::kPositive) found |= 1u << k;
  }
  return found;
}

// One of an element's states from its code.
template <class Rule, uint8_t form>
LRFAST_HD float decode_state(int k, uint8_t code, uint32_t scale) {
  const bool is_positive = (positive_states<Rule, form>() >> k & 1u) != 0u;
  return is_positive ? decode<StateKind::kPositive>(code, scale)
                     : decode<StateKind::kSigned>(code, scale);
}

// This thread's part of a chunk in the pass that measures a distance. Terms are added up as those
// of square_vectors are.
template <class Rule, uint8_t form, class Param, class State>
LRFAST_HD Terms<double> measure_chunk(const ChunkAddresses& at,
                                      const Update<Rule, compute_t<Param>>& update, int thread,
                                      int threads) {
  using T = compute_t<Param>;
  constexpr int kRunning = applied_states<Rule, form>();
  Terms<double> total{};
  walk_chunk<vector_length<false, 2, Param, State>()>(
      at, thread, threads, [&]<int length>(int first) {
        alignas(kVectorBytes) Param param[length];
        alignas(kVectorBytes) Param grad[length];
        alignas(kVectorBytes) State running[length];
        alignas(kVectorBytes) State seen[length];
        reload_barrier();
        load<length>(at.param, first, param);
        load<length>(at.grad, first, grad);
        load<length>(at.states[kRunning], first, running);
        load<length>(at.states[Rule::kSeen[form]], first, seen);
        Terms<T> sums{};
        LRFAST_UNROLL
        for (int e = 0; e < length; ++e) {
          const auto terms = measure_element<Rule, form>(param[e], grad[e], running[e], seen[e],
                                                         update, at.begin + first + e);
          sums.first += terms.first;
          sums.second += terms.second;
        }
        save<length>(running, at.states[kRunning], first);
        total.first += sums.first;
        total.second += sums.second;
      });
  return total;
}

// The same in the pass before an update with options that need sums over a tensor. State: uint8_t
// for states in 8 bits.
template <class Rule, uint8_t form, bool squares, class Param, class State>
LRFAST_HD Terms<double> foresee_chunk(const ChunkAddresses& at,
                                      const Update<Rule, compute_t<Param>>& update, int thread,
                                      int threads) {
  using T = compute_t<Param>;
  constexpr int kStates = Rule::kStates[form].count;
  constexpr bool kCoded = std::is_same_v<State, uint8_t>;
  constexpr int kLength = kCoded ? kLaneVector : vector_length<false, kStates, Param, State>();
  Terms<double> total{};
  walk_chunk<kLength>(at, thread, threads, [&]<int length>(int first) {
    alignas(kVectorBytes) Param param[length];
    alignas(kVectorBytes) Param grad[length];
    alignas(kVectorBytes) State held[kStates > 0 ? kStates : 1][length];
    reload_barrier();
    load<length>(at.param, first, param);
    load<length>(at.grad, first, grad);
    LRFAST_UNROLL
    for (int k = 0; k < kStates; ++k) load<length>(at.states[k], first, held[k]);
    Terms<T> sums{};
    LRFAST_UNROLL
    for (int e = 0; e < length; ++e) {
      const auto terms = foresee_element<Rule, form, squares>(
          param[e], grad[e],
          [&](int k) {
            if constexpr (kCoded) {
              return decode_state<Rule, form>(k, held[k][e], at.scales[k][first / kCodeBlock]);
            } else {
              return held[k][e];
            }
          },
          update);
      sums.first += terms.first;
      sums.second += terms.second;
      if constexpr (length > 1) serialize(param[e], grad[e + 1 < length ? e + 1 : e]);
    }
    total.first += sums.first;
    total.second += sums.second;
  });
  return total;
}

// ---- states in 8 bits ------------------------------------------------------------------------

template <int states>
struct HeldStates {
  float values[kBlockParts][states][kLaneVector];
};

// A vector of neighbours: decoded, updated and left in held. What is missing is all zeros, and so
// are its states afterwards, or no numbers.
template <class Rule, uint8_t form, bool cautious, class Param, class Count>
LRFAST_HD void update_coded(const StepTables& t, const ChunkAddresses& at,
                            const Update<Rule, float>& update, int first, bool is_whole,
                            float (*held)[kLaneVector], Count&& count) {
  constexpr int kStates = Rule::kStates[form].count;
  alignas(kVectorBytes) weight_t<Param> param[kLaneVector];
  alignas(kVectorBytes) grad_t<Param> grad[kLaneVector];
  reload_barrier();
  load_weights<kLaneVector, Param>(at, first, is_whole, param);
  load_part<kLaneVector>(at.grad, first, at.count, is_whole, grad);
  alignas(kLaneVector) uint8_t codes[kStates][kLaneVector];
  LRFAST_UNROLL
  for (int k = 0; k < kStates; ++k) {
    load_part<kLaneVector>(at.states[k], first, at.count, is_whole, codes[k]);
  }
  const auto decode_element = [&](int e) {
    LRFAST_UNROLL
    for (int k = 0; k < kStates; ++k) {
      const uint32_t scale = first < at.count ? at.scales[k][first / kCodeBlock] : 0u;
      held[k][e] = decode_state<Rule, form>(k, codes[k][e], scale);
    }
  };
  constexpr bool kInPairs = std::is_same_v<Param, StochasticBFloat16>;
  LRFAST_UNROLL
  for (int e = 0; e < kLaneVector; e += kInPairs ? 2 : 1) {
    const weight_t<Param> before[2] = {param[e], param[kInPairs ? e + 1 : e]};
    decode_element(e);
    if constexpr (kInPairs) {
      decode_element(e + 1);
      const uint32_t pair =
          static_cast<uint32_t>(at.begin >> 1) + static_cast<uint32_t>(first + e) / 2;
      update_pair<Rule, form, cautious, kLaneVector>(param, grad, held, e, update, pair);
    } else {
      update_element<Rule, form, cautious>(
          param[e], widened_grad<Param>(at, grad[e]), [&](int k) -> float& { return held[k][e]; },
          update, at.begin + first + e);
      serialize(param[e], grad[e + 1 < kLaneVector ? e + 1 : e]);
    }
    if (t.totals.chunk_changes) {
      for (int i = 0; i < (kInPairs ? 2 : 1); ++i) {
        if (first + e + i < at.count) {
          count(before[i], kept_weight<Param>(at, param[e + i]));
        }
      }
    }
  }
  reload_barrier();
  save_weights<kLaneVector, Param>(param, at, first, is_whole);
  if (is_whole) {
    finish_elements<kLaneVector, Param>(t, at, update.average_weight, first, param);
  } else {
    LRFAST_UNROLL
    for (int e = 0; e < kLaneVector; ++e) {
      if (first + e < at.count) {
        finish_elements<1, Param>(t, at, update.average_weight, first + e, &param[e]);
      }
    }
  }
}

// A vector's codes of one state, by the scale of its block.
template <StateKind kind>
LRFAST_HD void save_codes(const ChunkAddresses& at, const Noise& noise, int k, int first,
                          bool is_whole, const float* held, uint32_t scale) {
  reload_barrier();
  alignas(kLaneVector) uint8_t codes[kLaneVector];
  LRFAST_UNROLL
  for (int e = 0; e < kLaneVector; e += 2) {
    const uint32_t pair =
        static_cast<uint32_t>(at.begin >> 1) + static_cast<uint32_t>(first + e) / 2;
    const uint32_t both = Noise::of_value(noise.of_pair(pair), k + 1);
    codes[e] = static_cast<uint8_t>(encode<kind>(held[e], scale, both & 0xffffu));
    codes[e + 1] = static_cast<uint8_t>(encode<kind>(held[e + 1], scale, both >> 16));
  }
  save_part<kLaneVector>(codes, at.states[k], first, at.count, is_whole);
}

// A warp's part of a chunk whose states are in 8 bits, a block of codes at a time, whose scale its
// lanes find together. count(lane, before, after) takes what telemetry counts.
template <class Rule, uint8_t form, bool cautious, class Param, class Warp, class Count>
LRFAST_HD void update_coded_blocks(const StepTables& t, const ChunkAddresses& at,
                                   const Update<Rule, float>& update, Warp& warp, int number,
                                   int warps, Count&& count) {
  constexpr int kStates = Rule::kStates[form].count;
  constexpr uint32_t kPositive = positive_states<Rule, form>();
  typename Warp::template Values<HeldStates<kStates>> held;
  typename Warp::template Values<uint32_t> largest;
  const int stride = warps * static_cast<int>(kCodeBlock);
  LRFAST_NO_UNROLL
  for (int block = number * static_cast<int>(kCodeBlock); block < at.count; block += stride) {
    const bool is_whole = at.aligned && at.count - block >= kCodeBlock;
    LRFAST_UNROLL
    for (int part = 0; part < kBlockParts; ++part) {
      warp.for_each_lane([&](int lane) {
        const int first = block + part * kBlockPart + lane * kLaneVector;
        update_coded<Rule, form, cautious, Param>(
            t, at, update, first, is_whole, held.of(lane).values[part],
            [&](const auto& before, const auto& after) { count(lane, before, after); });
      });
    }
    LRFAST_UNROLL
    for (int k = 0; k < kStates; ++k) {
      warp.for_each_lane([&](int lane) {
        uint32_t found = 0;
        LRFAST_UNROLL
        for (int part = 0; part < kBlockParts; ++part) {
          LRFAST_UNROLL
          for (int e = 0; e < kLaneVector; ++e) {
            const uint32_t own = finite_magnitude(held.of(lane).values[part][k][e]);
            found = own > found ? own : found;
          }
        }
        largest.of(lane) = found;
      });
      const uint32_t found = warp.largest(largest);
      const auto save_kind = [&]<StateKind kind>() {
        const uint32_t scale = scale_of<kind>(found);
        warp.for_each_lane([&](int lane) {
          LRFAST_UNROLL
          for (int part = 0; part < kBlockParts; ++part) {
            const int first = block + part * kBlockPart + lane * kLaneVector;
            const float* own = held.of(lane).values[part][k];
            save_codes<kind>(at, update.noise, k, first, is_whole, own, scale);
          }
          if (lane == 0) {
            at.scales[k][block / kCodeBlock] = static_cast<uint8_t>(scale);
          }
        });
      };
      if ((kPositive >> k & 1u) != 0u) {
        save_kind.template operator()<StateKind::kPositive>();
      } else {
        save_kind.template operator()<StateKind::kSigned>();
      }
    }
  }
}

// Vectors of one thread that are on their way from memory at once while squares are summed: one
// after the other, they would leave memory idle half of the time.
constexpr int kVectorsAtOnce = 4;

// The sum of squares of this many vectors, a stride apart. In float, of a few elements each, which
// then go into a double: double arithmetic per element would be slow on consumer GPUs.
template <int length, int vectors, class Param>
LRFAST_HD double square_vectors(const ChunkAddresses& at, int first, int stride) {
  alignas(kVectorBytes) Param grad[vectors][length];
  compute_t<Param> squares[vectors] = {};
  LRFAST_UNROLL
  for (int v = 0; v < vectors; ++v) load<length>(at.grad, first + v * stride, grad[v]);
  LRFAST_UNROLL
  for (int v = 0; v < vectors; ++v) {
    LRFAST_UNROLL
    for (int e = 0; e < length; ++e) add_square(squares[v], to_compute(grad[v][e]));
  }
  LRFAST_UNROLL
  for (int v = 1; v < vectors; ++v) squares[0] += squares[v];
  return squares[0];
}

// This thread's part of a chunk's sum of squares.
template <class Param>
LRFAST_HD double square_chunk(const ChunkAddresses& at, int thread, int threads) {
  constexpr int kLength = kVectorBytes / sizeof(Param);
  const int stride = threads * kLength;
  double sum = 0.0;
  ChunkAddresses rest = at;
  if (at.aligned) {
    const int rounds = at.count / (kVectorsAtOnce * stride);
    LRFAST_NO_UNROLL
    for (int round = 0; round < rounds; ++round) {
      const int first = round * kVectorsAtOnce * stride + thread * kLength;
      sum += square_vectors<kLength, kVectorsAtOnce, Param>(at, first, stride);
    }
    rest.grad = static_cast<Param*>(at.grad) + rounds * kVectorsAtOnce * stride;
    rest.count -= rounds * kVectorsAtOnce * stride;
  }
  walk_chunk<kLength>(rest, thread, threads, [&]<int length>(int first) {
    sum += square_vectors<length, 1, Param>(rest, first, 0);
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

}  // namespace lrfast::cuda
