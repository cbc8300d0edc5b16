// The bodies of the step's kernels: a persistent grid walks the flat chunk table, and the last
// block to finish adds up the norms, or advances the counts. They run on the device through step.cu
// and on the host, whole grids of them, in tests/cpp.
#pragma once

#include "core/step.h"
#include "cuda/block.cuh"
#include "cuda/elements.cuh"

namespace lrfast::cuda {

constexpr int kMaxThreads = 512;  // in a block

constexpr int kParts = 16;

// What a block adds up: one value per thread, then parts of them, then those, in a fixed order.
struct BlockSums {
  double values[kMaxThreads];
  double parts[kParts];

  template <class Block>
  LRFAST_HD void add_parts(Block& block) {
    block.for_each_thread([&](int thread) {
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
  BlockSums sums;    // of a chunk, of groups, of all groups
  BlockSums shared;  // of the groups that share a max_norm
  double unscale;
  bool is_stopped;
  bool is_last;
};

template <class Rule>
struct StepMemory {  // shared by the block
  Update<Rule, float> floats;
  Update<Rule, double> doubles;
  double hypers[kHyperSlots];
  BlockSums updates;
  BlockSums weights;
  ChunkAddresses at;
  int32_t tensor;  // whose scalars are prepared
  int32_t decision;
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

// Adds up the chunks of all groups, or of all tensors, with the whole block: several threads to
// each where there are few. begins: where chunks of each begin; done(group, sum) runs once per
// group.
template <class Block, class Done>
LRFAST_HD void sum_groups(const int64_t* begins, int32_t count, const double* chunks, int width,
                          BlockSums& sums, Block& block, Done&& done) {
  const int groups_at_once = count < block.threads() ? count : block.threads();
  const int lanes = groups_at_once > 0 ? block.threads() / groups_at_once : 1;
  for (int32_t first = 0; first < count; first += groups_at_once) {
    block.for_each_thread([&](int thread) {
      const int32_t group = first + thread / lanes;
      if (thread / lanes >= groups_at_once || group >= count) return;
      sums.values[thread] = sum_chunks(begins, chunks, width, group, thread % lanes, lanes);
    });
    block.for_each_thread([&](int thread) {
      const int32_t group = first + thread;
      if (thread >= groups_at_once || group >= count) return;
      double sum = 0.0;
      for (int lane = 0; lane < lanes; ++lane) sum += sums.values[thread * lanes + lane];
      done(group, sum);
    });
  }
}

// What the kernel does: the same for all its blocks. For one thread of each.
template <class Block>
LRFAST_HD int32_t decide_norms(const StepTables& t, Block& block) {
  return block.decide(&t.clock->decision, is_stopped(t) ? kIsStopped : kRuns);
}

// A step with norms is stopped if these were, because there are none for it then; so are the moves
// if the directions were. For the first kernel behind the norms.
template <class Rule, class Block>
LRFAST_HD int32_t decide_begin(const StepTables& t, Block& block) {
  const bool moves = kHasDirections<Rule> && t.phase == Phase::kMoves;
  const bool is_second = t.totals.chunk_squares != nullptr || moves;
  const bool stopped = is_second ? t.clock->norms_stopped != 0 : is_stopped(t);
  const int32_t own = stopped ? kIsStopped : is_skipped(t) ? kIsSkipped : kRuns;
  return block.decide(&t.clock->decision, own);
}

// A step does what the kernel did that measured before it.
template <class Rule, bool altered, class Block>
LRFAST_HD int32_t decide_step(const StepTables& t, Block& block) {
  if constexpr (Measures<Rule>) {
    return t.clock->measured;
  } else {
    if (altered && t.totals.tensor_terms != nullptr) return t.clock->measured;
    return decide_begin<Rule>(t, block);
  }
}

// What the blocks of a kernel have shared, as the next one wants to find it.
LRFAST_HD void clear_blocks(Clock& clock) {
  clock.norms_stopped = 0;
  clock.measured = kUndecided;
  clock.decision = kUndecided;
  clock.blocks_done = 0;
}

// From each group's sum of squares to the norms. The scale is read once for all of them.
template <class Block>
LRFAST_HD void finish_norms(const StepTables& t, NormMemory& shared, Block& block) {
  block.thread_zero([&] { shared.unscale = unscaling(t.gradients); });
  block.for_each_thread([&](int thread) {
    SquareTotals totals;
    for (int32_t g = thread; g < t.num_groups; g += block.threads()) {
      finish_group_norm(t, g, shared.unscale, totals);
    }
    shared.sums.values[thread] = totals.all;
    shared.shared.values[thread] = totals.shared;
  });
  shared.sums.add_parts(block);
  shared.shared.add_parts(block);
  block.thread_zero(
      [&] { finish_total_norms(t, shared.unscale, {shared.sums.total(), shared.shared.total()}); });
}

// The first kernel, where a norm is wanted: the squares of all gradients. Blocks are counted in
// also where the step is stopped.
template <class Block>
LRFAST_HD void norm_body(const StepTables& t, NormMemory& shared, Block& block) {
  block.thread_zero([&] { shared.is_stopped = decide_norms(t, block) == kIsStopped; });
  const int64_t num_chunks = shared.is_stopped ? 0 : t.num_chunks;
  for (int64_t c = block.index(); c < num_chunks; c += block.count()) {
    const ChunkRow chunk = t.chunks[c];
    const TensorRow& row = t.tensors[chunk.tensor];
    const bool counts = is_counted(t, chunk.tensor);
    with_types(row.dtypes, [&]<class Param, class State>() {
      block.for_each_thread([&](int thread) {
        double sum = 0.0;
        if (counts) {
          const ChunkAddresses at = locate_grad<Param>(row, t.grads[chunk.tensor],
                                                       chunk.index * t.chunk_size, t.chunk_size);
          sum = square_chunk<Param>(at, thread, block.threads());
        }
        shared.sums.values[thread] = sum;
      });
    });
    shared.sums.add_parts(block);
    block.thread_zero([&] { t.totals.chunk_squares[c] = shared.sums.total(); });
  }
  block.thread_zero(
      [&] { shared.is_last = block.arrive(&t.clock->blocks_done) == block.count() - 1; });
  if (!shared.is_last) return;
  sum_groups(t.group_chunks, t.num_groups, t.totals.chunk_squares, 1, shared.sums, block,
             [&](int32_t group, double sum) { t.totals.group_squares[group] = sum; });
  if (t.phase != Phase::kSquares) finish_norms(t, shared, block);
  block.thread_zero([&] {
    clear_blocks(*t.clock);
    t.clock->norms_stopped = shared.is_stopped;
  });
}

// The same once other devices and processes have added their squares.
template <class Block>
LRFAST_HD void finish_norms_body(const StepTables& t, NormMemory& shared, Block& block) {
  if (t.clock->norms_stopped) return;
  finish_norms(t, shared, block);
}

// The schedules' values at the coming step, once for each group: evaluated where a tensor's scalars
// are prepared they would take registers from the loop over elements, and time from every block.
template <class Block>
LRFAST_HD void schedule_body(const StepTables& t, Block& block) {
  block.for_each_thread([&](int thread) {
    for (int32_t g = thread; g < t.num_groups; g += block.threads()) {
      t.values[g] = evaluate_schedule(t.inputs->schedules, t.groups[g].schedule, t.clock->applied);
    }
  });
}

template <class Rule>
LRFAST_HD void resolve_group(const StepTables& t, int32_t g, double* hypers) {
  resolve_hypers<Rule>(t, g, t.values[g], hypers);
}

// Everything that happens once per step, after all blocks have read the old counts.
template <class Rule, bool passes, class Block>
LRFAST_HD void finish(const StepTables& t, StepMemory<Rule>& shared, Block& block) {
  block.for_each_thread([&](int thread) {
    double hypers[kHyperSlots] = {};
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
      sum_groups(
          t.group_chunks, t.num_groups, changes, 2, shared.updates, block,
          [&](int32_t group, double sum) { write_record(t, group, kRecordUpdateNorm, sum); });
      sum_groups(
          t.group_chunks, t.num_groups, changes + 1, 2, shared.weights, block,
          [&](int32_t group, double sum) { write_record(t, group, kRecordWeightNorm, sum); });
    }
  }
  block.thread_zero([&] {
    advance<Rule>(*t.clock);
    clear_blocks(*t.clock);
  });
  schedule_body(t, block);
}

// The scalars of a chunk's tensor, unless they are there from the chunk before.
template <bool altered, class Rule, class Block>
LRFAST_HD void prepare_tensor(const StepTables& t, int32_t tensor, StepMemory<Rule>& shared,
                              Block& block) {
  if (shared.tensor == tensor) return;
  block.for_each_thread([](int) {});  // all have read shared.tensor before it changes
  block.thread_zero([&] {
    const TensorRow& row = t.tensors[tensor];
    resolve_group<Rule>(t, row.group, shared.hypers);
    if constexpr (altered && kTakesClipping<Rule>) clip_rate<Rule>(t, tensor, shared.hypers);
    reload_barrier();
    const Noise noise = Noise::at(t.seed, row.number, t.clock->steps);
    if (row.dtypes == DtypePair::kFloat64) {
      shared.doubles =
          prepare<Rule, double, altered>(t, tensor, shared.hypers, noise, PlainPowers());
    } else {
      shared.floats = prepare<Rule, float, altered>(t, tensor, shared.hypers, noise, PlainPowers());
    }
    shared.tensor = tensor;
  });
}

// A chunk's addresses, with those of scales if its states are in 8 bits.
template <class Rule, uint8_t form, class Param, class State>
LRFAST_HD void locate_any(const StepTables& t, const ChunkRow& chunk, const TensorRow& row,
                          ChunkAddresses& at) {
  const int64_t begin = chunk.index * t.chunk_size;
  void* grads = t.grads[chunk.tensor];
  if (!kMayBeCoded<Rule, form, State> || !row.coded) {
    at = locate_chunk<Rule, form, Param, State>(row, grads, begin, t.chunk_size);
    return;
  }
  at = locate_chunk<Rule, form, Param, uint8_t>(row, grads, begin, t.chunk_size);
  for (int k = 0; k < Rule::kStates[form].count; ++k) {
    at.scales[k] = row.scales[k] + begin / kCodeBlock;
  }
}

// Of the kernel before the update: the terms of each tensor, or, for a distance, of all chunks, in
// a fixed order.
template <class Rule, class Block>
LRFAST_HD void sum_terms(const StepTables& t, StepMemory<Rule>& shared, Block& block) {
  if constexpr (!Measures<Rule>) {
    for (int which = 0; which < 2; ++which) {
      sum_groups(
          t.tensor_chunks, t.num_tensors, t.totals.chunk_terms + which, 2, shared.updates, block,
          [&](int32_t tensor, double sum) { t.totals.tensor_terms[2 * tensor + which] = sum; });
    }
    return;
  }
  block.for_each_thread([&](int thread) {
    double numerator = 0.0;
    double denominator = 0.0;
    for (int64_t c = thread; c < t.num_chunks; c += block.threads()) {
      numerator += t.totals.chunk_terms[2 * c];
      denominator += t.totals.chunk_terms[2 * c + 1];
    }
    shared.updates.values[thread] = numerator;
    shared.weights.values[thread] = denominator;
  });
  shared.updates.add_parts(block);
  shared.weights.add_parts(block);
  block.thread_zero([&] {
    t.totals.terms[0] = shared.updates.total();
    t.totals.terms[1] = shared.weights.total();
  });
}

// This thread's terms of a chunk in that kernel.
template <class Rule, bool squares, uint8_t form, class Param, class State>
LRFAST_HD Terms<double> terms_of(const TensorRow& row, StepMemory<Rule>& shared, int thread,
                                 int threads) {
  const auto& update = shared.template update<compute_t<Param>>();
  if constexpr (Measures<Rule>) {
    return measure_chunk<Rule, form, Param, State>(shared.at, update, thread, threads);
  } else {
    if constexpr (kMayBeCoded<Rule, form, State>) {
      if (row.coded) {
        return foresee_chunk<Rule, form, squares, Param, uint8_t>(shared.at, update, thread,
                                                                  threads);
      }
    }
    return foresee_chunk<Rule, form, squares, Param, State>(shared.at, update, thread, threads);
  }
}

// The kernel before the update of a rule that measures a distance, or with options that need sums
// over each tensor; squares: of ratios, too. Blocks are counted in also where the step is stopped
// or skipped.
template <class Rule, bool squares, class Block>
LRFAST_HD void measure_body(const StepTables& t, StepMemory<Rule>& shared, Block& block) {
  block.thread_zero([&] {
    shared.decision = decide_begin<Rule>(t, block);
    shared.tensor = -1;
  });
  const bool runs = shared.decision == kRuns;
  for (int64_t c = block.index(); runs && c < t.num_chunks; c += block.count()) {
    const ChunkRow chunk = t.chunks[c];
    if (!is_updated(t, chunk.tensor)) {
      if constexpr (Measures<Rule>) {
        block.thread_zero(
            [&] { t.totals.chunk_terms[2 * c] = t.totals.chunk_terms[2 * c + 1] = 0.0; });
      }
      continue;
    }
    const TensorRow& row = t.tensors[chunk.tensor];
    prepare_tensor<false>(t, chunk.tensor, shared, block);
    with_types(row.dtypes, [&]<class Param, class State>() {
      using T = compute_t<Param>;
      with_form<Rule>(row.form, [&]<uint8_t form>() {
        block.thread_zero([&] { locate_any<Rule, form, Param, State>(t, chunk, row, shared.at); });
        block.for_each_thread([&](int thread) {
          const Terms<double> terms =
              terms_of<Rule, squares, form, Param, State>(row, shared, thread, block.threads());
          shared.updates.values[thread] = terms.first;
          shared.weights.values[thread] = terms.second;
        });
      });
      shared.updates.add_parts(block);
      shared.weights.add_parts(block);
      block.thread_zero([&] {
        write_terms<Rule, T>(t, c, {shared.updates.total(), shared.weights.total()},
                             shared.template update<T>().scalars);
      });
    });
  }
  block.thread_zero(
      [&] { shared.is_last = block.arrive(&t.clock->blocks_done) == block.count() - 1; });
  if (!shared.is_last) return;
  if (runs) sum_terms(t, shared, block);
  block.thread_zero([&] {
    if constexpr (Measures<Rule>) {
      if (runs && t.phase == Phase::kWhole) finish_distance<Rule>(t);
    }
    clear_blocks(*t.clock);
    t.clock->measured = shared.decision;
  });
}

// The same once other devices and processes have added their terms.
template <class Rule, class Block>
LRFAST_HD void finish_distance_body(const StepTables& t, Block& block) {
  block.thread_zero([&] {
    if (t.clock->measured == kRuns) finish_distance<Rule>(t);
  });
}

// Skipped, frozen: nothing but the gradient may change.
template <class Rule, class Block>
LRFAST_HD void skip_chunk(const StepTables& t, int64_t c, StepMemory<Rule>& shared, Block& block) {
  const ChunkRow chunk = t.chunks[c];
  void* grads = t.grads[chunk.tensor];
  if (t.totals.chunk_changes) {
    block.thread_zero(
        [&] { t.totals.chunk_changes[2 * c] = t.totals.chunk_changes[2 * c + 1] = 0.0; });
  }
  if (!zeroes_now<Rule>(t, chunk.tensor) || grads == nullptr) return;
  const TensorRow& row = t.tensors[chunk.tensor];
  with_types(row.dtypes, [&]<class Param, class State>() {
    block.thread_zero([&] {
      shared.at = locate_grad<Param>(row, grads, chunk.index * t.chunk_size, t.chunk_size);
    });
    block.for_each_thread(
        [&](int thread) { zero_chunk<Param>(shared.at, thread, block.threads()); });
  });
}

// A chunk whose states are in 8 bits.
template <class Rule, bool cautious, uint8_t form, class Param, class Block>
LRFAST_HD void update_coded_chunk(const StepTables& t, const ChunkRow& chunk, const TensorRow& row,
                                  StepMemory<Rule>& shared, Block& block) {
  block.thread_zero([&] { locate_any<Rule, form, Param, float>(t, chunk, row, shared.at); });
  block.for_each_thread(
      [&](int thread) { shared.updates.values[thread] = shared.weights.values[thread] = 0.0; });
  block.for_each_warp([&](auto& warp, int number, int warps) {
    const int lanes = block.threads() / warps;  // fewer than a warp's on the host alone
    const auto count = [&](int lane, const auto& before, const auto& after) {
      const int thread = number * lanes + lane % lanes;
      Changes changes;
      count_change(before, after, changes);
      shared.updates.values[thread] += changes.updates;
      shared.weights.values[thread] += changes.weights;
    };
    update_coded_blocks<Rule, form, cautious, Param>(t, shared.at, shared.floats, warp, number,
                                                     warps, count);
  });
}

// Whether averages, zeroing, telemetry, states in 8 bits or master bits are wanted; they cost
// registers.
LRFAST_HD bool has_passes(const StepTables& t) {
  return t.has_averages || t.has_codes || t.has_masters || t.gradients.zero ||
         t.totals.chunk_changes != nullptr;
}

// with_types(), and MasterHalf for a parameter with master bits, in the kernel that knows them.
template <class Rule, bool passes, class Visitor>
LRFAST_HD void with_weights(const TensorRow& row, Visitor&& visit) {
  if constexpr (passes && kKeepsMasters<Rule>) {
    if (row.master != 0) {
      if (row.dtypes == DtypePair::kBFloat16) {
        return visit.template operator()<MasterHalf, BFloat16>();
      }
      return visit.template operator()<MasterHalf, float>();
    }
  }
  with_types(row.dtypes, visit);
}

// Calls visit.template operator()<passes, altered>() as a step's kernel has to be, for those who
// launch it. Options of the update have a kernel of their own, so that plain ones keep their
// registers.
template <class Rule, class Visitor>
void with_step(const StepTables& t, bool passes, Visitor&& visit) {
  if constexpr (kTakesOptions<Rule>) {
    if (t.update.is_altered()) return visit.template operator()<true, true>();
  }
  if (passes) return visit.template operator()<true, false>();
  visit.template operator()<false, false>();
}

// passes: as has_passes() says, or altered. altered: as the update's options say.
template <class Rule, bool passes, bool altered, class Block>
LRFAST_HD void step_body(const StepTables& t, StepMemory<Rule>& shared, Block& block) {
  block.thread_zero([&] {
    shared.decision = decide_step<Rule, altered>(t, block);
    shared.tensor = -1;
  });
  const int64_t num_chunks = shared.decision == kIsStopped ? 0 : t.num_chunks;
  const bool skipped = shared.decision != kRuns;  // or stopped
  for (int64_t c = block.index(); c < num_chunks; c += block.count()) {
    const ChunkRow chunk = t.chunks[c];
    if (skipped || !is_updated_now<Rule>(t, chunk.tensor)) {
      if constexpr (passes) skip_chunk(t, c, shared, block);
      continue;
    }
    const TensorRow& row = t.tensors[chunk.tensor];
    prepare_tensor<altered>(t, chunk.tensor, shared, block);
    with_weights<Rule, passes>(row, [&]<class Param, class State>() {
      with_form<Rule>(form_now<Rule>(t, chunk.tensor), [&]<uint8_t form>() {
        if constexpr (passes && kMayBeCoded<Rule, form, State>) {
          if (row.coded != 0) {
            update_coded_chunk<Rule, altered, form, Param>(t, chunk, row, shared, block);
            return;
          }
        }
        block.thread_zero([&] {
          shared.at = locate_chunk<Rule, form, Param, State>(
              row_now<Rule>(t, chunk.tensor), grad_now<Rule>(t, chunk.tensor),
              chunk.index * t.chunk_size, t.chunk_size);
        });
        block.for_each_thread([&](int thread) {
          const Changes changes = update_chunk<Rule, passes, altered, form, Param, State>(
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
        block.thread_zero([&] {
          t.totals.chunk_changes[2 * c] = shared.updates.total();
          t.totals.chunk_changes[2 * c + 1] = shared.weights.total();
        });
      }
    }
  }
  block.thread_zero(
      [&] { shared.is_last = block.arrive(&t.clock->blocks_done) == block.count() - 1; });
  if (!shared.is_last) return;
  const bool directs = kHasDirections<Rule> && t.phase == Phase::kDirections;
  if (skipped || directs) {
    block.thread_zero([&] {
      clear_blocks(*t.clock);
      if (directs) t.clock->norms_stopped = shared.decision == kIsStopped;
    });
  } else {
    finish<Rule, passes>(t, shared, block);
  }
}

}  // namespace lrfast::cuda
