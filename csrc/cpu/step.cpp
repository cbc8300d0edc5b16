#include "cpu/step.h"

#include <new>
#include <type_traits>

#include "core/rules.h"
#include "cpu/norms.h"
#include "cpu/post_update.h"
#include "cpu/tasks.h"
#include "cpu/wide.h"

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
// altered: whether the update's options are to be looked at.
template <class Rule, bool altered>
class PreparedScalars {
 public:
  // Has them made for a tensor, unless they are those of the last one; returns their place.
  int prepare(const StepTables& t, int32_t tensor, const Hypers* hypers) {
    const TensorRow& row = t.tensors[tensor];
    const TensorClock clock = clock_of(row);
    const bool is_double = row.dtypes == DtypePair::kFloat64;
    if (row.group == group_ && clock == clock_ && is_double == is_double_ &&
        (!altered || t.totals.tensor_terms == nullptr || tensor == tensor_)) {
      return place_;
    }
    group_ = row.group;
    tensor_ = tensor;
    clock_ = clock;
    is_double_ = is_double;
    place_ = 1 - place_;
    const double* values = hypers[row.group].values;
    if constexpr (altered && kTakesClipping<Rule>) {
      if (t.update.clipping > 0.0) {
        clipped_ = hypers[row.group];
        clip_rate<Rule>(t, tensor, clipped_.values);
        values = clipped_.values;
      }
    }
    // In place: a copy would be read while its parts are still being stored.
    if (is_double) {
      new (&doubles_[place_]) Update<Rule, double>(
          lrfast::prepare<Rule, double, altered>(t, tensor, values, Noise{}, powers_));
    } else {
      new (&floats_[place_]) Update<Rule, float>(
          lrfast::prepare<Rule, float, altered>(t, tensor, values, Noise{}, powers_));
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
  Hypers clipped_;
  int32_t tensor_ = -1;
  int32_t group_ = -1;
  int place_ = 0;
  bool is_double_ = false;
};

// ---- elements --------------------------------------------------------------------------------

template <class Rule, uint8_t form, bool cautious, class T>
LRFAST_HD void update_range(T* params, const T* grads, T* const* states,
                            const Update<Rule, T>& update, int64_t first, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    update_element<Rule, form, cautious>(
        params[i], grads[i], [&](int k) -> T& { return states[k][i]; }, update, first + i);
  }
}

// The passes behind the rule, on one tile of a chunk after the other, so that each element comes
// from memory once.
class Passes {
 public:
  LRFAST_HD Passes(const StepTables& t, int64_t c, const TensorRow& row, void* grads,
                   double average_weight)
      : row_(row), grads_(t.gradients.zero ? grads : nullptr), average_weight_(average_weight) {
    sums_ = t.totals.chunk_changes ? t.totals.chunk_changes + 2 * c : nullptr;
  }
  LRFAST_HD bool any() const { return row_.average || grads_ || sums_; }
  LRFAST_HD void before(int64_t begin, int64_t end) {
    if (sums_) widen_tile(row_, begin, end, before_);
  }
  LRFAST_HD void after(int64_t begin, int64_t end) {
    if (row_.average) average_tile(row_, average_weight_, begin, end);
    if (grads_) zero_tile(row_.dtypes, grads_, begin, end);
    if (sums_) add_changes(row_, before_, begin, end, sums_);
  }

 private:
  const TensorRow& row_;
  void* grads_;
  double average_weight_;
  double* sums_;
  double before_[kTile];
};

// Parameters, gradients and states of the one type that their rule runs in.
template <class Rule, uint8_t form, bool cautious, class T>
LRFAST_HD void update_chunk(const StepTables& t, int64_t c, const TensorRow& row, void* grads,
                            const Update<Rule, T>& given) {
  const Range range = range_of(t, t.chunks[c]);
  const Update<Rule, T> update = given;  // a local copy: stores to arrays cannot change it
  Passes passes(t, c, row, grads, update.average_weight);
  const int64_t tile = passes.any() ? kTile : range.end - range.begin;
  for (int64_t begin = range.begin; begin < range.end; begin += tile) {
    const int64_t end = std::min(begin + tile, range.end);
    passes.before(begin, end);
    T* states[kMaxStates];
    for (int k = 0; k < applied_states<Rule, form>(); ++k) {
      states[k] = static_cast<T*>(row.states[k]) + begin;
    }
    update_range<Rule, form, cautious>(static_cast<T*>(row.param) + begin,
                                       static_cast<const T*>(grads) + begin, states, update, begin,
                                       end - begin);
    passes.after(begin, end);
  }
}

// Elements that go through floats in registers: their number is known, so no copy is stored.
constexpr int64_t kRun = 64;

// Whole runs of elements [begin, end); returns where the rest begins.
template <class Rule, uint8_t form, class Param, class State>
LRFAST_HD int64_t update_runs(const TensorRow& row, void* grads, const Update<Rule, float>& update,
                              const Noise& noise, int64_t begin, int64_t end) {
  constexpr int kStates = applied_states<Rule, form>();
  for (; begin + kRun <= end; begin += kRun) {
    Param* params = static_cast<Param*>(row.param) + begin;
    const Param* gradients = static_cast<const Param*>(grads) + begin;
    State* states[kMaxStates];
    const int64_t left = row.numel - begin;
    prefetch_block<kRun>(params, left);
    prefetch_block<kRun>(gradients, left);
    for (int k = 0; k < kStates; ++k) {
      states[k] = static_cast<State*>(row.states[k]) + begin;
      prefetch_block<kRun>(states[k], left);
    }
    alignas(64) float param[kRun];
    alignas(64) float grad[kRun];
    alignas(64) float held[kStates > 0 ? kStates : 1][kRun];
    widen(params, kRun, param);
    widen(gradients, kRun, grad);
    for (int k = 0; k < kStates; ++k) widen(states[k], kRun, held[k]);
#pragma GCC ivdep
    for (int64_t i = 0; i < kRun; ++i) {
      update_element<Rule, form>(
          param[i], grad[i], [&](int k) -> float& { return held[k][i]; }, update, begin + i);
    }
    BlockNoise<kRun> bits;
    if constexpr (std::is_same_v<Param, StochasticBFloat16>) bits.fill(noise, begin);
    narrow(param, kRun, params, bits, 0);
    for (int k = 0; k < kStates; ++k) narrow(held[k], kRun, states[k], bits, k + 1);
  }
  return begin;
}

// Of tensors with bfloat16, the frequent kinds: elsewhere copies in the first cache cost AdamW 15
// to 25 % of the time that it takes from there, and each kind here is another copy of every rule.
template <class Rule, uint8_t form>
LRFAST_HD int64_t update_runs(const TensorRow& row, void* grads, const Update<Rule, float>& update,
                              const Noise& noise, int64_t begin, int64_t end) {
  const auto with = [&]<class Param, class State>() {
    return update_runs<Rule, form, Param, State>(row, grads, update, noise, begin, end);
  };
  if (row.coded != 0 || row.master != 0) return begin;
  switch (row.dtypes) {
    case DtypePair::kBFloat16:
      return with.template operator()<BFloat16, BFloat16>();
    case DtypePair::kBFloat16StatesFloat32:
      return with.template operator()<BFloat16, float>();
    case DtypePair::kFloat32StatesBFloat16:
      return with.template operator()<float, BFloat16>();
    case DtypePair::kStochasticBFloat16:
      return with.template operator()<StochasticBFloat16, StochasticBFloat16>();
    default:
      return begin;
  }
}

// widen_block() for loops that floats as they lie in memory go through, too: without its
// prefetches, which make large float32 tensors slower.
LRFAST_HD WideBlock block_of(const TensorRow& row, const void* grads, const StateNames& names,
                             Arrays arrays, int64_t begin, int64_t end, WideCopies& copies) {
  if (!is_plain(row)) return widen_block(row, grads, names, arrays, begin, end, copies);
  WideBlock block{
      static_cast<float*>(row.param) + begin, static_cast<const float*>(grads) + begin, {}};
  for (int k = 0; k < names.count; ++k) {
    block.states[k] = static_cast<float*>(row.states[k]) + begin;
  }
  return block;
}

// All others, through floats.
template <class Rule, uint8_t form, bool cautious>
LRFAST_HD void update_blocks(const StepTables& t, int64_t c, const TensorRow& row, void* grads,
                             const Update<Rule, float>& given) {
  constexpr int kStates = applied_states<Rule, form>();
  const Range range = range_of(t, t.chunks[c]);
  const Noise noise = Noise::at(t.seed, row.number, t.clock->steps);
  const Update<Rule, float> update = given;
  const StateNames& names = Rule::kStates[form];
  Passes passes(t, c, row, grads, update.average_weight);
  WideCopies copies;
  for (int64_t begin = range.begin; begin < range.end; begin += kWide) {
    const int64_t end = std::min(begin + kWide, range.end);
    passes.before(begin, end);
    int64_t rest = begin;
    if constexpr (!cautious) rest = update_runs<Rule, form>(row, grads, update, noise, begin, end);
    if (rest < end) {
      const WideBlock block = block_of(row, grads, names, first_states(kStates), rest, end, copies);
      update_range<Rule, form, cautious>(block.param, block.grad, block.states, update, rest,
                                         end - rest);
      if (!is_plain(row)) {
        prefetch_grads(row, grads, rest);
        narrow_block(row, names, first_states(kStates) | kParam, block, noise, rest, end);
      }
    }
    passes.after(begin, end);
  }
}

// Functions of their own, so that the loops of small float32 tensors stay as short as they are.
template <class Rule, uint8_t form>
LRFAST_CLONES __attribute__((noinline)) void update_wide_chunk(const StepTables& t, int64_t c,
                                                               const TensorRow& row, void* grads,
                                                               const Update<Rule, float>& update) {
  update_blocks<Rule, form, false>(t, c, row, grads, update);
}
template <class Rule, uint8_t form>
LRFAST_CLONES __attribute__((noinline)) void update_altered_chunk(
    const StepTables& t, int64_t c, const TensorRow& row, void* grads,
    const PreparedScalars<Rule, true>& scalars, int place) {
  if (row.dtypes == DtypePair::kFloat64) {
    update_chunk<Rule, form, true>(t, c, row, grads, scalars.template at<double>(place));
  } else {
    update_blocks<Rule, form, true>(t, c, row, grads, scalars.template at<float>(place));
  }
}

void prefetch_chunk(const StepTables& t, ChunkRow chunk) {
  const TensorRow& row = t.tensors[chunk.tensor];
  if (row.coded != 0) {  // a chunk's scales are a line of the cache
    const int64_t block = chunk.index * t.chunk_size / kCodeBlock;
    for (const uint8_t* scales : row.scales) {
      if (scales != nullptr) __builtin_prefetch(scales + block, 1);
    }
  }
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

// altered: by options of the update.
template <class Rule, bool altered>
LRFAST_CLONES void update_chunks(const StepTables& t, const Hypers* hypers, int64_t begin,
                                 int64_t end) {
  PreparedScalars<Rule, altered> scalars;
  const auto prepare = [&](int64_t c) {
    const int32_t tensor = t.chunks[c].tensor;
    return is_updated_now<Rule>(t, tensor) ? scalars.prepare(t, tensor, hypers) : kNone;
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
    const auto& row = row_now<Rule>(t, tensor);
    void* grads = grad_now<Rule>(t, tensor);
    with_form<Rule>(form_now<Rule>(t, tensor), [&]<uint8_t form>() {
      if constexpr (altered) {
        update_altered_chunk<Rule, form>(t, c, row, grads, scalars, place);
      } else if (row.dtypes == DtypePair::kFloat64) {
        update_chunk<Rule, form, false>(t, c, row, grads, scalars.template at<double>(place));
      } else if (is_plain(row)) {
        update_chunk<Rule, form, false>(t, c, row, grads, scalars.template at<float>(place));
      } else {
        update_wide_chunk<Rule, form>(t, c, row, grads, scalars.template at<float>(place));
      }
    });
  }
}

// ---- pass before the update ------------------------------------------------------------------

// Sums of the pass that measures, in an order that is the same everywhere: one for each place in a
// row of so many elements. Compilers unroll a loop over fewer of them, and convert one by one then.
struct TermSums {
  static constexpr int64_t kPlaces = 64;
  alignas(64) double firsts[kPlaces] = {};
  alignas(64) double seconds[kPlaces] = {};

  template <class T>
  LRFAST_HD void add(const T* first, const T* second) {  // [kPlaces] each
    for (int64_t i = 0; i < kPlaces; ++i) firsts[i] += static_cast<double>(first[i]);
    for (int64_t i = 0; i < kPlaces; ++i) seconds[i] += static_cast<double>(second[i]);
  }
  LRFAST_HD Terms<double> total() {
    for (int64_t half = kPlaces / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) {
        firsts[i] += firsts[i + half];
        seconds[i] += seconds[i + half];
      }
    }
    return {firsts[0], seconds[0]};
  }
};

// Those of the element at e; start: the place of the first one in the tensor.
template <class Rule, uint8_t form, bool squares, class T>
LRFAST_HD Terms<T> terms_of(const T* params, const T* grads, T* const* states,
                            const Update<Rule, T>& update, int64_t start, int64_t e) {
  if constexpr (Measures<Rule>) {
    return measure_element<Rule, form>(params[e], grads[e], states[applied_states<Rule, form>()][e],
                                       states[Rule::kSeen[form]][e], update, start + e);
  } else {
    return foresee_element<Rule, form, squares>(
        params[e], grads[e], [&](int k) { return states[k][e]; }, update);
  }
}

template <class Rule, uint8_t form, bool squares, class T>
LRFAST_HD void measure_range(const T* params, const T* grads, T* const* states,
                             const Update<Rule, T>& update, int64_t start, int64_t count,
                             TermSums& sums) {
  alignas(64) T first[TermSums::kPlaces];
  alignas(64) T second[TermSums::kPlaces];
  for (int64_t i = 0; i < count; i += TermSums::kPlaces) {
    const int64_t places = std::min(TermSums::kPlaces, count - i);
    if (places < TermSums::kPlaces) {
      std::fill_n(first, TermSums::kPlaces, T(0));
      std::fill_n(second, TermSums::kPlaces, T(0));
    }
#pragma GCC ivdep
    for (int64_t j = 0; j < places; ++j) {
      const auto terms = terms_of<Rule, form, squares>(params, grads, states, update, start, i + j);
      first[j] = terms.first;
      second[j] = terms.second;
    }
    sums.add(first, second);
  }
}

// States that this pass reads, and those that it brings up to date.
template <class Rule, uint8_t form>
constexpr Arrays states_read() {
  if constexpr (Measures<Rule>) {
    return state_at(applied_states<Rule, form>()) | state_at(Rule::kSeen[form]);
  } else {
    return first_states(Rule::kStates[form].count);
  }
}
template <class Rule, uint8_t form>
constexpr Arrays kStatesWritten = Measures<Rule> ? state_at(applied_states<Rule, form>()) : 0;

template <class Rule, uint8_t form, bool squares, class T>
LRFAST_HD void measure_chunk(const StepTables& t, int64_t c, const TensorRow& row,
                             const Update<Rule, T>& given) {
  const Range range = range_of(t, t.chunks[c]);
  const void* grads = t.grads[t.chunks[c].tensor];
  const Update<Rule, T> update = given;
  TermSums sums;
  if constexpr (std::is_same_v<T, float>) {
    const Noise noise = Noise::at(t.seed, row.number, t.clock->steps);
    const StateNames& names = Rule::kStates[form];
    WideCopies copies;
    for (int64_t begin = range.begin; begin < range.end; begin += kWide) {
      const int64_t end = std::min(begin + kWide, range.end);
      const WideBlock block =
          block_of(row, grads, names, states_read<Rule, form>(), begin, end, copies);
      measure_range<Rule, form, squares>(block.param, block.grad, block.states, update, begin,
                                         end - begin, sums);
      if (!is_plain(row)) prefetch_grads(row, grads, begin);
      if constexpr (Measures<Rule>) {
        narrow_block(row, names, kStatesWritten<Rule, form>, block, noise, begin, end);
      }
    }
  } else {
    T* states[kMaxStates];
    for (int k = 0; k < Rule::kStates[form].count; ++k) {
      states[k] = static_cast<T*>(row.states[k]) + range.begin;
    }
    measure_range<Rule, form, squares>(static_cast<const T*>(row.param) + range.begin,
                                       static_cast<const T*>(grads) + range.begin, states, update,
                                       range.begin, range.end - range.begin, sums);
  }
  write_terms<Rule, T>(t, c, sums.total(), update.scalars);
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
    t.totals.group_squares[g] = sum_chunks(t.group_chunks, t.totals.chunk_squares, 1, g, 0, 1);
  }
}

template <class Rule, bool squares>
LRFAST_CLONES void measure_chunks(const StepTables& t, const Hypers* hypers, int64_t begin,
                                  int64_t end) {
  PreparedScalars<Rule, false> scalars;
  for (int64_t c = begin; c < end; ++c) {
    const int32_t tensor = t.chunks[c].tensor;
    const TensorRow& row = t.tensors[tensor];
    if constexpr (Measures<Rule>) {
      t.totals.chunk_terms[2 * c] = t.totals.chunk_terms[2 * c + 1] = 0.0;
    }
    if (c + kAhead < end) prefetch_chunk(t, t.chunks[c + kAhead]);
    if (!is_updated(t, tensor)) continue;
    const int place = scalars.prepare(t, tensor, hypers);
    with_form<Rule>(row.form, [&]<uint8_t form>() {
      if (row.dtypes == DtypePair::kFloat64) {
        measure_chunk<Rule, form, squares>(t, c, row, scalars.template at<double>(place));
      } else {
        measure_chunk<Rule, form, squares>(t, c, row, scalars.template at<float>(place));
      }
    });
  }
}

template <class Rule, bool squares>
void take_terms(const StepTables& t, const Scratch& scratch, ParallelFor parallel_for) {
  run_tasks(scratch.begins, parallel_for, [&](int64_t begin, int64_t end) {
    measure_chunks<Rule, squares>(t, scratch.hypers.data(), begin, end);
  });
  const double* chunks = t.totals.chunk_terms;
  for (int which = 0; which < 2; ++which) {
    if constexpr (Measures<Rule>) {
      t.totals.terms[which] = 0.0;
      for (int64_t c = 0; c < t.num_chunks; ++c) t.totals.terms[which] += chunks[2 * c + which];
    } else {
      for (int32_t i = 0; i < t.num_tensors; ++i) {
        t.totals.tensor_terms[2 * i + which] =
            sum_chunks(t.tensor_chunks, chunks + which, 2, i, 0, 1);
      }
    }
  }
}

void write_records(const StepTables& t) {
  for (int32_t g = 0; g < t.num_groups; ++g) {
    const double* changes = t.totals.chunk_changes;
    write_record(t, g, kRecordUpdateNorm, sum_chunks(t.group_chunks, changes, 2, g, 0, 1));
    write_record(t, g, kRecordWeightNorm, sum_chunks(t.group_chunks, changes + 1, 2, g, 0, 1));
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
    if (t.phase != Phase::kUpdate) take_terms<Rule, false>(t, scratch, parallel_for);
    if (t.phase == Phase::kMeasure) return;
    finish_distance<Rule>(t);
  }
  with_terms<Rule>(t, [&]<bool squares>() { take_terms<Rule, squares>(t, scratch, parallel_for); });
  run_tasks(scratch.begins, parallel_for, [&](int64_t begin, int64_t end) {
    if constexpr (kTakesOptions<Rule>) {
      if (t.update.is_altered()) {
        return update_chunks<Rule, true>(t, scratch.hypers.data(), begin, end);
      }
    }
    update_chunks<Rule, false>(t, scratch.hypers.data(), begin, end);
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
