#include "cpu/step.h"

#include <bit>
#include <cstring>
#include <new>

#include "core/rules.h"
#include "cpu/codes.h"
#include "cpu/norms.h"
#include "cpu/post_update.h"
#include "cpu/tasks.h"

namespace lrfast::cpu {
namespace {

// While one chunk is updated, the memory of the chunk this far ahead is on its way: small tensors
// lie anywhere, and the processor cannot guess where.
constexpr int64_t kAhead = 2;
constexpr int64_t kPrefetchBytes = 256;

// ---- scalars ---------------------------------------------------------------------------------

// The last two powers that were asked for: groups mostly differ in their rates alone.
class PowerCache {
 public:
  double operator()(double base, int64_t exponent) { return find(base, exponent).value; }
  double root_weight(double base, int64_t exponent) { return find(base, exponent).root_weight; }

 private:
  struct Power {
    double base = 0.0;
    int64_t exponent = -1;
    double value = 0.0;
    double root_weight = 0.0;
  };

  const Power& find(double base, int64_t exponent) {
    for (const Power& power : powers_) {
      if (power.base == base && power.exponent == exponent) return power;
    }
    Power& power = powers_[next_];
    next_ = 1 - next_;
    const PlainPowers plain;
    power = {base, exponent, plain(base, exponent), plain.root_weight(base, exponent)};
    return power;
  }

  Power powers_[2];
  int next_ = 0;
};

// The scalars of the chunk being updated and of the one that comes next. They are made a chunk
// early, so that the loop over elements waits neither for the divisions nor for the stores: with
// 465 groups of 64 elements that was half of the update's time. Tensors of one group mostly share
// their count, and then their scalars.
template <class Rule>
class PreparedScalars {
 public:
  // Has them made for a tensor, unless they are those of the last one; returns their place.
  int prepare(const StepTables& t, const TensorRow& row, const Hypers* hypers) {
    const TensorClock clock = clock_of(row);
    const bool is_double = row.dtypes == DtypePair::kFloat64;
    if (row.group == group_ && clock == clock_ && is_double == is_double_) {
      return place_;
    }
    group_ = row.group;
    clock_ = clock;
    is_double_ = is_double;
    place_ = 1 - place_;
    const double* values = hypers[row.group].values;
    // In place: a copy would be read while its parts are still being stored.
    if (is_double) {
      new (&doubles_[place_])
          Update<Rule, double>(lrfast::prepare<Rule, double>(t, row, values, Noise{}, powers_));
    } else {
      new (&floats_[place_])
          Update<Rule, float>(lrfast::prepare<Rule, float>(t, row, values, Noise{}, powers_));
    }
    return place_;
  }

  template <class T>
  const Update<Rule, T>& at(int place) const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return floats_[place];
    } else {
      return doubles_[place];
    }
  }

 private:
  Update<Rule, float> floats_[2]{};
  Update<Rule, double> doubles_[2]{};
  PowerCache powers_;
  TensorClock clock_{};
  int32_t group_ = -1;
  int place_ = 0;
  bool is_double_ = false;
};

// ---- elements --------------------------------------------------------------------------------

// Half elements go through floats, this many at a time. Compilers vectorise a loop over one type;
// one that mixes types they do badly or not at all: AdamW on bfloat16 took 3.6 ns per element with
// AVX2, and takes 0.8 so (0.6 and 0.56 with AVX-512).
constexpr int64_t kBlock = 64;
// A block computes for longer than the processor looks ahead, so memory is asked for this many
// elements early: AdamW on 22 million bfloat16 then takes 7.3 ms instead of 9.
constexpr int64_t kBlockAhead = 1024;

// left: elements of the tensor from array on.
template <int64_t block = kBlock, class Element>
LRFAST_HD void prefetch_block(const Element* array, int64_t left) {
  if (kBlockAhead + block > left) return;
  const char* ahead = reinterpret_cast<const char*>(array + kBlockAhead);
  for (size_t byte = 0; byte < block * sizeof(Element); byte += 64) {
    __builtin_prefetch(ahead + byte, 1);
  }
}

template <class Element>
LRFAST_HD void widen(const Element* from, float* to) {
  for (int64_t i = 0; i < kBlock; ++i) to[i] = to_compute(from[i]);
}

template <class Element>
LRFAST_HD void narrow(const float* from, Element* to, const Noise& noise, int64_t first,
                      int which) {
#pragma GCC ivdep
  for (int64_t i = 0; i < kBlock; ++i) store(from[i], to[i], noise, first + i, which);
}

// The noise of a pair of elements lies in memory as each of them takes it: low half first.
LRFAST_HD void narrow(const float* from, StochasticBFloat16* to, const Noise& noise, int64_t first,
                      int which) {
  static_assert(std::endian::native == std::endian::little);
  uint32_t pairs[kBlock / 2 + 1];  // one more for a block that begins with the second of a pair
  for (uint32_t i = 0; i <= kBlock / 2; ++i) {
    pairs[i] = Noise::of_value(noise.of_pair(static_cast<uint32_t>(first >> 1) + i), which);
  }
  uint16_t halves[kBlock + 2];
  std::memcpy(halves, pairs, sizeof(halves));
  const uint16_t* own = halves + (first & 1);
#pragma GCC ivdep
  for (int64_t i = 0; i < kBlock; ++i) from_compute(from[i], to[i], own[i]);
}

// first: the first element's place in the tensor.
template <class Rule, uint8_t form, class Param, class State>
LRFAST_HD void update_block(Param* params, const Param* gradients, State* const* states,
                            const Update<Rule, float>& update, int64_t first) {
  constexpr int kStates = applied_states<Rule, form>();
  alignas(64) float param[kBlock];
  alignas(64) float grad[kBlock];
  alignas(64) float held[kStates > 0 ? kStates : 1][kBlock];
  widen(params, param);
  widen(gradients, grad);
  for (int k = 0; k < kStates; ++k) widen(states[k], held[k]);
#pragma GCC ivdep
  for (int64_t i = 0; i < kBlock; ++i) {
    update_element<Rule, form>(
        param[i], grad[i], [&](int k) -> float& { return held[k][i]; }, update, first + i);
  }
  narrow(param, params, update.noise, first, 0);
  for (int k = 0; k < kStates; ++k) narrow(held[k], states[k], update.noise, first, k + 1);
}

// Neighbours in a tensor.
template <class Param, class State>
struct Elements {
  Param* params;
  const Param* grads;
  State* states[kMaxStates];
  int64_t first;  // the first one's place in the tensor
  int64_t count;
  int64_t left;  // how many there are from the first one on; 0: they lie elsewhere
};

template <class Rule, uint8_t form, class Param, class State>
LRFAST_HD void update_range(const Elements<Param, State>& at,
                            const Update<Rule, compute_t<Param>>& given, const Noise& noise) {
  auto update = given;  // a local copy: stores to float arrays cannot change it
  update.noise = noise;
  int64_t i = 0;
  if constexpr (sizeof(State) == sizeof(BFloat16) || std::is_same_v<Param, StochasticBFloat16>) {
    for (; i + kBlock <= at.count; i += kBlock) {
      State* states[kMaxStates];
      prefetch_block(at.params + i, at.left - i);
      prefetch_block(at.grads + i, at.left - i);
      for (int k = 0; k < applied_states<Rule, form>(); ++k) {
        states[k] = at.states[k] + i;
        prefetch_block(states[k], at.left - i);
      }
      update_block<Rule, form>(at.params + i, at.grads + i, states, update, at.first + i);
    }
  }
#pragma GCC ivdep
  for (int64_t e = i; e < at.count; ++e) {
    update_element<Rule, form>(
        at.params[e], at.grads[e], [&](int k) -> State& { return at.states[k][e]; }, update,
        at.first + e);
  }
}

// The rule and the passes behind it, tile by tile, so that each element comes from memory once; all
// at once if there are no passes. One call of update_range in either case, because each is a copy
// of its loops, and half of the time that this takes to compile.
template <class Rule, uint8_t form, class Param, class State>
LRFAST_HD void update_chunk(const StepTables& t, int64_t c,
                            const Update<Rule, compute_t<Param>>& update) {
  const int32_t tensor = t.chunks[c].tensor;
  const auto& row = row_now<Rule>(t, tensor);
  void* grads = grad_now<Rule>(t, tensor);
  const Range range = range_of(t, t.chunks[c]);
  const Noise noise = Noise::at(t.seed, row.number, t.clock->steps);
  double* sums = t.totals.chunk_changes ? t.totals.chunk_changes + 2 * c : nullptr;
  const bool has_passes = row.average || t.gradients.zero || sums;
  // States in 8 bits go through floats, a block at a time; then the loops are those of float
  // states.
  constexpr int kStates = Rule::kStates[form].count;
  constexpr bool kMayBeCoded = kStates > 0 && std::is_same_v<State, float>;
  alignas(64) WideBlock wide[kMayBeCoded ? kStates : 1];
  const bool is_coded = kMayBeCoded && row.coded != 0;
  const int64_t tile = is_coded ? kCodeBlock : has_passes ? kTile : range.end - range.begin;
  double before[kTile];
  for (int64_t begin = range.begin; begin < range.end; begin += tile) {
    const int64_t end = std::min(begin + tile, range.end);
    if (sums) widen_tile(row, begin, end, before);
    Elements<Param, State> at{static_cast<Param*>(row.param) + begin,
                              static_cast<const Param*>(grads) + begin,
                              {},
                              begin,
                              end - begin,
                              is_coded ? 0 : row.numel - begin};
    for (int k = 0; k < kStates; ++k)
      at.states[k] = static_cast<State*>(row.states[k]) + (is_coded ? 0 : begin);
    if constexpr (kMayBeCoded) {
      if (is_coded) {
        prefetch_block<kCodeBlock>(at.params, row.numel - begin);
        for (int k = 0; k < kStates; ++k) {
          const uint8_t* codes = static_cast<const uint8_t*>(row.states[k]);
          prefetch_block<kCodeBlock>(codes + begin, row.numel - begin);
        }
        decode_block(Rule::kStates[form], row, begin, end, wide);
        for (int k = 0; k < kStates; ++k) at.states[k] = wide[k];
        prefetch_block<kCodeBlock>(at.grads, row.numel - begin);
      }
    }
    update_range<Rule, form>(at, update, noise);
    if constexpr (kMayBeCoded) {
      if (is_coded) encode_block(Rule::kStates[form], row, begin, end, wide, noise);
    }
    if (row.average) average_tile(row, update.average_weight, begin, end);
    if (t.gradients.zero) zero_tile(row.dtypes, grads, begin, end);
    if (sums) add_changes(row, before, begin, end, sums);
  }
}

void prefetch_chunk(const StepTables& t, ChunkRow chunk) {
  const TensorRow& row = t.tensors[chunk.tensor];
  if (chunk.index > 0) return;  // the memory behind the chunk before
  const char* arrays[] = {
      static_cast<const char*>(row.param), static_cast<const char*>(t.grads[chunk.tensor]),
      static_cast<const char*>(row.states[0]), static_cast<const char*>(row.states[1])};
  for (const char* array : arrays) {
    for (int64_t byte = 0; byte < kPrefetchBytes; byte += 64) __builtin_prefetch(array + byte, 1);
  }
  __builtin_prefetch(row.count, 1);
  __builtin_prefetch(row.product, 1);
}

constexpr int kNone = -1;  // stands for the scalars of a chunk that is not updated

template <class Rule>
LRFAST_CLONES void update_chunks(const StepTables& t, const Hypers* hypers, int64_t begin,
                                 int64_t end) {
  PreparedScalars<Rule> scalars;
  const auto prepare = [&](int64_t c) {
    const int32_t tensor = t.chunks[c].tensor;
    return is_updated_now<Rule>(t, tensor) ? scalars.prepare(t, t.tensors[tensor], hypers) : kNone;
  };
  int next = begin < end ? prepare(begin) : kNone;
  for (int64_t c = begin; c < end; ++c) {
    if (c + kAhead < end) prefetch_chunk(t, t.chunks[c + kAhead]);
    const int place = next;
    if (c + 1 < end) next = prepare(c + 1);
    if (t.totals.chunk_changes)
      t.totals.chunk_changes[2 * c] = t.totals.chunk_changes[2 * c + 1] = 0.0;
    if (place == kNone) {
      if (zeroes_now<Rule>(t, t.chunks[c].tensor)) zero_chunks(t, c, c + 1);
      continue;
    }
    const int32_t tensor = t.chunks[c].tensor;
    with_types(t.tensors[tensor].dtypes, [&]<class Param, class State>() {
      with_form<Rule>(form_now<Rule>(t, tensor), [&]<uint8_t form>() {
        update_chunk<Rule, form, Param, State>(t, c, scalars.template at<compute_t<Param>>(place));
      });
    });
  }
}

// ---- distance --------------------------------------------------------------------------------

// Sums of the pass that measures, in an order that is the same everywhere: one for each place in a
// block. Compilers unroll a loop over fewer of them, and convert one by one then.
struct TermSums {
  alignas(64) double numerators[kBlock] = {};
  alignas(64) double denominators[kBlock] = {};

  template <class T>
  LRFAST_HD void add(const T* numerator, const T* denominator) {  // [kBlock] each
    for (int64_t i = 0; i < kBlock; ++i) numerators[i] += static_cast<double>(numerator[i]);
    for (int64_t i = 0; i < kBlock; ++i) denominators[i] += static_cast<double>(denominator[i]);
  }
  LRFAST_HD DistanceTerms<double> total() {
    for (int64_t half = kBlock / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) {
        numerators[i] += numerators[i + half];
        denominators[i] += denominators[i + half];
      }
    }
    return {numerators[0], denominators[0]};
  }
};

// Count elements of that pass, and their terms.
template <class Rule, uint8_t form, class Param, class State>
LRFAST_HD void measure_elements(const Param* params, const Param* gradients, State* running,
                                const State* seen, const Update<Rule, compute_t<Param>>& update,
                                int64_t first, int64_t count, compute_t<Param>* numerator,
                                compute_t<Param>* denominator) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const auto terms = measure_element<Rule, form>(params[i], gradients[i], running[i], seen[i],
                                                   update, first + i);
    numerator[i] = terms.numerator;
    denominator[i] = terms.denominator;
  }
}

// Half elements go through floats, as in update_block.
template <class Rule, uint8_t form, class Param, class State>
LRFAST_HD void measure_halves(const Param* params, const Param* gradients, State* running,
                              const State* seen, const Update<Rule, float>& update, int64_t first,
                              float* numerator, float* denominator) {
  alignas(64) float param[kBlock];
  alignas(64) float grad[kBlock];
  alignas(64) float sum[kBlock];
  alignas(64) float other[kBlock];
  widen(params, param);
  widen(gradients, grad);
  widen(running, sum);
  widen(seen, other);
  measure_elements<Rule, form>(param, grad, sum, other, update, first, kBlock, numerator,
                               denominator);
  narrow(sum, running, update.noise, first, applied_states<Rule, form>() + 1);
}

template <class Rule, uint8_t form, class Param, class State>
LRFAST_HD void measure_chunk(const StepTables& t, int64_t c,
                             const Update<Rule, compute_t<Param>>& given) {
  constexpr int kRunning = applied_states<Rule, form>();
  const int32_t tensor = t.chunks[c].tensor;
  const TensorRow& row = t.tensors[tensor];
  const Range range = range_of(t, t.chunks[c]);
  const Param* params = static_cast<const Param*>(row.param);
  const Param* gradients = static_cast<const Param*>(t.grads[tensor]);
  State* running = static_cast<State*>(row.states[kRunning]);
  const State* seen = static_cast<const State*>(row.states[Rule::kSeen[form]]);
  auto update = given;
  update.noise = Noise::at(t.seed, row.number, t.clock->steps);
  TermSums sums;
  alignas(64) compute_t<Param> numerator[kBlock];
  alignas(64) compute_t<Param> denominator[kBlock];
  int64_t i = range.begin;
  for (; i + kBlock <= range.end; i += kBlock) {
    if constexpr (sizeof(State) == sizeof(BFloat16) || sizeof(Param) == sizeof(BFloat16)) {
      measure_halves<Rule, form>(params + i, gradients + i, running + i, seen + i, update, i,
                                 numerator, denominator);
    } else {
      measure_elements<Rule, form>(params + i, gradients + i, running + i, seen + i, update, i,
                                   kBlock, numerator, denominator);
    }
    sums.add(numerator, denominator);
  }
  if (i < range.end) {
    std::fill_n(numerator, kBlock, compute_t<Param>(0));
    std::fill_n(denominator, kBlock, compute_t<Param>(0));
    measure_elements<Rule, form>(params + i, gradients + i, running + i, seen + i, update, i,
                                 range.end - i, numerator, denominator);
    sums.add(numerator, denominator);
  }
  const DistanceTerms<double> total = sums.total();
  write_terms(t, c, total.numerator, total.denominator, update.scalars);
}

// ---- step ------------------------------------------------------------------------------------

template <class Rule>
void resolve_groups(const StepTables& t, std::vector<Hypers>& resolved) {
  resolved.resize(t.num_groups);
  int32_t evaluated = -2;  // no schedule has this number
  ScheduleValues values;
  for (int32_t g = 0; g < t.num_groups; ++g) {
    const GroupRow& group = t.groups[g];
    if (group.schedule != evaluated) {
      values = evaluate_schedule(t.inputs->schedules, group.schedule, t.clock->applied);
      evaluated = group.schedule;
    }
    resolve_hypers<Rule>(t, g, values, resolved[g].values);
    t.rates[g] = resolved[g].values[Rule::kRate];
  }
}

void take_squares(const StepTables& t, const Scratch& scratch, ParallelFor parallel_for) {
  run_tasks(scratch.begins, parallel_for,
            [&](int64_t begin, int64_t end) { square_chunks(t, begin, end); });
  for (int32_t g = 0; g < t.num_groups; ++g) {
    t.totals.group_squares[g] = sum_chunks(t, t.totals.chunk_squares, 1, g, 0, 1);
  }
}

template <class Rule>
LRFAST_CLONES void measure_chunks(const StepTables& t, const Hypers* hypers, int64_t begin,
                                  int64_t end) {
  PreparedScalars<Rule> scalars;
  for (int64_t c = begin; c < end; ++c) {
    const int32_t tensor = t.chunks[c].tensor;
    const TensorRow& row = t.tensors[tensor];
    t.totals.chunk_terms[2 * c] = t.totals.chunk_terms[2 * c + 1] = 0.0;
    if (c + kAhead < end) prefetch_chunk(t, t.chunks[c + kAhead]);
    if (!is_updated(t, tensor)) continue;
    const int place = scalars.prepare(t, row, hypers);
    with_types(row.dtypes, [&]<class Param, class State>() {
      with_form<Rule>(row.form, [&]<uint8_t form>() {
        measure_chunk<Rule, form, Param, State>(t, c, scalars.template at<compute_t<Param>>(place));
      });
    });
  }
}

template <class Rule>
void take_terms(const StepTables& t, const Scratch& scratch, ParallelFor parallel_for) {
  run_tasks(scratch.begins, parallel_for, [&](int64_t begin, int64_t end) {
    measure_chunks<Rule>(t, scratch.hypers.data(), begin, end);
  });
  double* terms = t.totals.terms;
  terms[0] = terms[1] = 0.0;
  for (int64_t c = 0; c < t.num_chunks; ++c) {
    terms[0] += t.totals.chunk_terms[2 * c];
    terms[1] += t.totals.chunk_terms[2 * c + 1];
  }
}

void write_records(const StepTables& t) {
  for (int32_t g = 0; g < t.num_groups; ++g) {
    const double* changes = t.totals.chunk_changes;
    write_record(t, g, kRecordUpdateNorm, sum_chunks(t, changes, 2, g, 0, 1));
    write_record(t, g, kRecordWeightNorm, sum_chunks(t, changes + 1, 2, g, 0, 1));
  }
}

template <class Rule>
void step_with(const StepTables& t, int threads, ParallelFor parallel_for, Scratch& scratch) {
  split(t, threads, scratch.begins);
  if (takes_squares(t)) take_squares(t, scratch, parallel_for);
  if (t.phase == Phase::kSquares) return;
  if (t.totals.chunk_squares) finish_norms(t);
  if (!updates(t)) return;
  if (is_skipped(t)) {
    if (!t.gradients.zero || t.phase == Phase::kMeasure) return;
    return run_tasks(scratch.begins, parallel_for,
                     [&](int64_t begin, int64_t end) { zero_chunks(t, begin, end); });
  }
  resolve_groups<Rule>(t, scratch.hypers);
  if constexpr (Measures<Rule>) {
    if (t.phase != Phase::kUpdate) take_terms<Rule>(t, scratch, parallel_for);
    if (t.phase == Phase::kMeasure) return;
    finish_distance<Rule>(t);
  }
  run_tasks(scratch.begins, parallel_for, [&](int64_t begin, int64_t end) {
    update_chunks<Rule>(t, scratch.hypers.data(), begin, end);
  });
  if (t.phase == Phase::kDirections) return;
  if (t.totals.chunk_changes) write_records(t);
  for (int32_t i = 0; i < t.num_tensors; ++i) {
    if (!is_updated(t, i)) continue;
    advance<Rule>(t.tensors[i], scratch.hypers[t.tensors[i].group].values);
  }
  advance<Rule>(*t.clock);
}

}  // namespace

void step(int rule, const StepTables& tables, int threads, ParallelFor parallel_for,
          Scratch& scratch) {
  if (is_stopped(tables)) return;
  Rules::visit(rule,
               [&]<class Rule>() { step_with<Rule>(tables, threads, parallel_for, scratch); });
}

}  // namespace lrfast::cpu
