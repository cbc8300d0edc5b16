// What every driver does around its element loop: a group's hyperparameters at this step, a
// tensor's scalars, the norms of gradients, and the advance of the counts afterwards.
#pragma once

#include <cmath>

#include "core/kernel.h"
#include "core/rule.h"
#include "core/schedule.h"
#include "core/tables.h"

namespace lrfast {

// As the flag is now: each look may find it otherwise.
LRFAST_HD bool is_stopped(const StepTables& t) {
  const double* stop = t.inputs->stop;
  return stop != nullptr && *stop != 0.0;
}

LRFAST_HD bool is_finite(double x) { return x - x == 0.0; }

// Whether this step leaves everything but the gradients as it is. Stands after the norm pass.
LRFAST_HD bool is_skipped(const StepTables& t) {
  if (t.gradients.found_inf != nullptr && *t.gradients.found_inf != 0.0f) return true;
  return t.gradients.skip_nonfinite && !is_finite(t.totals.norms[t.num_groups]);
}

LRFAST_HD bool is_updated(const StepTables& t, int32_t tensor) {
  return t.grads[tensor] != nullptr && t.groups[t.tensors[tensor].group].frozen == 0;
}

LRFAST_HD bool is_counted(const StepTables& t, int32_t tensor) {
  return is_updated(t, tensor) && t.tensors[tensor].counted != 0;
}

// ---- phases ------------------------------------------------------------------------------------

LRFAST_HD bool takes_squares(const StepTables& t) {
  return t.totals.chunk_squares != nullptr &&
         (t.phase == Phase::kWhole || t.phase == Phase::kSquares || t.phase == Phase::kNorms);
}

// Whether norms are made of squares that an earlier call has taken: before a distance is measured,
// if the rule has one.
LRFAST_HD bool finishes_squares(const StepTables& t) {
  if (t.totals.chunk_squares == nullptr) return false;
  if (t.phase == Phase::kUpdate) return t.totals.terms == nullptr;
  return t.phase == Phase::kMeasure || t.phase == Phase::kFinish;
}

LRFAST_HD bool updates(const StepTables& t) {
  return t.phase != Phase::kSquares && t.phase != Phase::kNorms && t.phase != Phase::kFinish;
}

// Whether a call moves a tensor along the direction that a call before it has made.
LRFAST_HD bool is_moved(const StepTables& t, const TensorRow& row) {
  return row.direction != nullptr && t.phase == Phase::kMoves;
}

// is_updated() in this call.
template <class Rule>
LRFAST_HD bool is_updated_now(const StepTables& t, int32_t tensor) {
  if constexpr (kHasDirections<Rule>) {
    if (t.phase == Phase::kDirections && t.tensors[tensor].direction == nullptr) return false;
  }
  return is_updated(t, tensor);
}

// Whether this call sets a tensor's gradient to zero: whole ones are still to be read while others'
// directions are made.
template <class Rule>
LRFAST_HD bool zeroes_now(const StepTables& t, int32_t tensor) {
  if constexpr (kHasDirections<Rule>) {
    if (t.phase == Phase::kDirections && t.tensors[tensor].direction == nullptr) return false;
  }
  return t.gradients.zero;
}

// What a call's element loop reads as the gradient.
template <class Rule>
LRFAST_HD void* grad_now(const StepTables& t, int32_t tensor) {
  if constexpr (kHasDirections<Rule>) {
    if (is_moved(t, t.tensors[tensor])) return t.tensors[tensor].direction;
  }
  return t.grads[tensor];
}

template <class Rule>
LRFAST_HD uint8_t form_now(const StepTables& t, int32_t tensor) {
  if constexpr (kHasDirections<Rule>) {
    if (is_moved(t, t.tensors[tensor])) return Rule::kMoved;
  }
  return t.tensors[tensor].form;
}

// A tensor's row as a call's element loop sees it: directions are made where parameters are moved.
template <class Rule>
LRFAST_HD decltype(auto) row_now(const StepTables& t, int32_t tensor) {
  if constexpr (kHasDirections<Rule>) {
    TensorRow row = t.tensors[tensor];
    if (t.phase == Phase::kDirections) {
      row.param = row.direction;
      row.average = nullptr;
    }
    return row;
  } else {
    return (t.tensors[tensor]);
  }
}

// ---- hyperparameters and scalars -------------------------------------------------------------

// The group's hyperparameters with its schedule's values at this step in place; [kHyperSlots].
template <class Rule>
LRFAST_HD void resolve_hypers(const StepTables& t, int32_t group, const ScheduleValues& values,
                              double* hypers) {
  for (int i = 0; i < Rule::kNumHypers; ++i) hypers[i] = t.groups[group].hypers[i];
  hypers[Rule::kRate] *= values.rate;
  if (const double* scale = t.inputs->rate_scale) hypers[Rule::kRate] *= *scale;
  hypers[kDecayRate] =
      t.update.unscheduled_decay ? t.groups[group].hypers[Rule::kRate] : hypers[Rule::kRate];
  if constexpr (Rule::kMomentum >= 0) {
    if (values.cycles_momentum) hypers[Rule::kMomentum] = values.momentum;
  }
  hypers[Rule::kWeightDecay] *= values.weight_decay;
}

// Update clipping: the root mean square of a tensor's gradient, in units of former ones, divides
// its learning rate if it is above the threshold.
template <class Rule>
LRFAST_HD void clip_rate(const StepTables& t, int32_t tensor, double* hypers) {
  if (t.update.clipping <= 0.0) return;
  const double numel = static_cast<double>(t.tensors[tensor].numel);
  const double excess =
      std::sqrt(t.totals.tensor_terms[2 * tensor + 1] / numel) / t.update.clipping;
  if (excess <= 1.0) return;  // NaN goes on, as torch.clamp hands it on
  hypers[Rule::kRate] /= excess;
  hypers[kDecayRate] /= excess;
}

// The steps that are made are divided by their share, and so at most 1000 times as large.
template <class Rule, class T>
LRFAST_HD Caution<T> caution_of(const StepTables& t, int32_t tensor,
                                const typename Rule::template Scalars<T>& s) {
  Caution<T> caution{T(1), T(1), T(1)};
  if constexpr (kTakesCaution<Rule>) {
    if (t.update.cautious) {
      const double share =
          t.totals.tensor_terms[2 * tensor] / static_cast<double>(t.tensors[tensor].numel);
      caution.agreeing = static_cast<T>(1.0 / (share > 1e-3 ? share : 1e-3));
      caution.opposed = T(0);
    }
  }
  if constexpr (kDecouples<Rule>) {
    if (!t.update.cautious_decay) caution.spared = s.shrink;
  }
  return caution;
}

// What multiplies a gradient before its rule sees it. The scaler's inverse is rounded to float, as
// torch's GradScaler.unscale_ does it.
LRFAST_HD double unscaling(const GradientOptions& gradients) {
  return gradients.scale == nullptr ? 1.0 : static_cast<float>(1.0 / *gradients.scale);
}

// torch.nn.utils.clip_grad_norm_'s coefficient.
LRFAST_HD double clip_coefficient(double norm, double max_norm) {
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient < 1.0 ? coefficient : norm == norm ? 1.0 : norm;
}

LRFAST_HD double gradient_factor(const StepTables& t, int32_t group) {
  const double unscale = unscaling(t.gradients);
  const double own = t.groups[group].max_norm;
  const double max_norm = own > 0.0 ? own : t.inputs->max_norm;
  if (max_norm <= 0.0) return unscale;
  return unscale * clip_coefficient(t.totals.norms[own > 0.0 ? group : t.num_groups + 1], max_norm);
}

// The weight of the updated parameters in their moving average: 1 until the average starts. A decay
// that warms up is min(decay, (1 + n) / (10 + n)) after n averaged steps, as TensorFlow's is.
LRFAST_HD double average_weight(const StepTables& t) {
  const int64_t averaged = t.clock->steps - t.average_start;
  if (averaged < 0) return 1.0;
  const double first = t.average_warms_up ? 9.0 / (10.0 + static_cast<double>(averaged)) : 0.0;
  return first > t.average_weight ? first : t.average_weight;
}

LRFAST_HD double count_of(const TensorRow& row) {
  if (row.counts_in_double) return *static_cast<const double*>(row.count);
  return *static_cast<const float*>(row.count);
}

LRFAST_HD TensorClock clock_of(const TensorRow& row) {
  return {count_of(row), row.product ? *row.product : -1.0, row.largest ? *row.largest : 0.0};
}

template <class Rule, class T, class Powers>
LRFAST_HD auto prepare_scalars(const StepTables& t, const double* hypers, const TensorClock& clock,
                               Powers&& powers) {
  if constexpr (Measures<Rule>) {
    return Rule::template prepare<T>(hypers, clock, t.clock->distance, powers);
  } else {
    return Rule::template prepare<T>(hypers, clock, powers);
  }
}

// altered: whether the update's options are to be looked at.
template <class Rule, class T, bool altered, class Powers>
LRFAST_HD Update<Rule, T> prepare(const StepTables& t, int32_t tensor, const double* hypers,
                                  const Noise& noise, Powers&& powers) {
  const TensorRow& row = t.tensors[tensor];
  double factor = gradient_factor(t, row.group);
  if constexpr (kHasDirections<Rule>) {
    if (is_moved(t, row)) factor = 1.0;  // its direction has been made of scaled gradients
  }
  Update<Rule, T> update{prepare_scalars<Rule, T>(t, hypers, clock_of(row), powers),
                         static_cast<T>(factor),
                         noise,
                         static_cast<T>(t.has_averages ? average_weight(t) : 0.0),
                         {}};
  if constexpr (altered && kSteps<Rule>) {
    if (t.update.is_altered()) update.caution = caution_of<Rule, T>(t, tensor, update.scalars);
  }
  return update;
}

// ---- sums ------------------------------------------------------------------------------------

// Chunks' sums of one group or tensor, from first on in strides; begins: where chunks of each
// begin. Their order is fixed, so that a norm does not depend on the number of threads.
LRFAST_HD double sum_chunks(const int64_t* begins, const double* chunks, int width, int32_t which,
                            int64_t first, int64_t stride) {
  double sum = 0.0;
  const int64_t end = begins[which + 1];
  for (int64_t c = begins[which] + first; c < end; c += stride) sum += chunks[c * width];
  return sum;
}

// Squares of groups: of all, and of those that share a max_norm.
struct SquareTotals {
  double all = 0.0;
  double shared = 0.0;
};

// One group's norm, from its sum of squares, which is added to the totals.
LRFAST_HD void finish_group_norm(const StepTables& t, int32_t g, double unscale,
                                 SquareTotals& totals) {
  const double squares = t.totals.group_squares[g];
  totals.all += squares;
  if (t.groups[g].max_norm <= 0.0) totals.shared += squares;
  t.totals.norms[g] = std::sqrt(squares) * unscale;
}

LRFAST_HD void finish_total_norms(const StepTables& t, double unscale, const SquareTotals& totals) {
  t.totals.norms[t.num_groups] = std::sqrt(totals.all) * unscale;
  t.totals.norms[t.num_groups + 1] = std::sqrt(totals.shared) * unscale;
}

// From each group's sum of squares to the norms.
LRFAST_HD void finish_norms(const StepTables& t) {
  const double unscale = unscaling(t.gradients);
  SquareTotals totals;
  for (int32_t g = 0; g < t.num_groups; ++g) finish_group_norm(t, g, unscale, totals);
  finish_total_norms(t, unscale, totals);
}

// The terms of one chunk, from the sums over its elements.
template <class Rule, class T>
LRFAST_HD void write_terms(const StepTables& t, int64_t c, Terms<double> sums,
                           const typename Rule::template Scalars<T>& scalars) {
  const ChunkRow chunk = t.chunks[c];
  int64_t place = c;
  if constexpr (Measures<Rule>) {
    const bool counts = t.tensors[chunk.tensor].counted != 0 && scalars.numerator_weight > 0;
    sums.first *= scalars.numerator_weight;
    if (!counts) sums = {};
  } else {
    place = t.tensor_chunks[chunk.tensor] + chunk.index;
  }
  t.totals.chunk_terms[2 * place] = sums.first;
  t.totals.chunk_terms[2 * place + 1] = sums.second;
}

// Calls visit.template operator()<squares>() if options need sums over each tensor, of which the
// driver then takes the terms.
template <class Rule, class Visitor>
void with_terms(const StepTables& t, Visitor&& visit) {
  if (t.totals.tensor_terms == nullptr) return;
  if constexpr (kTakesClipping<Rule>) {
    if (t.update.clipping > 0.0) return visit.template operator()<true>();
  }
  if constexpr (kTakesCaution<Rule>) visit.template operator()<false>();
}

// From the terms to the distance. The hyperparameters are the first group's, which no schedule
// changes.
template <class Rule>
LRFAST_HD void finish_distance(const StepTables& t) {
  if (t.num_groups == 0) return;
  Rule::estimate(t.groups[0].hypers, {t.totals.terms[0], t.totals.terms[1]}, t.clock->distance);
}

// One of the sums in a group's line in the ring of records; the clock still shows the step before.
LRFAST_HD void write_record(const StepTables& t, int32_t group, RecordField field, double squares) {
  const int64_t slot = t.clock->steps % t.totals.capacity;
  double* record = t.totals.records + (slot * t.num_groups + group) * kRecordFields;
  record[kRecordRate] = t.rates[group];
  record[kRecordGradNorm] = t.totals.norms[group];
  record[field] = std::sqrt(squares);
}

// ---- counts ----------------------------------------------------------------------------------

// After a tensor's update. Only now: until then other threads still read the old counts.
template <class Rule>
LRFAST_HD void advance(const TensorRow& row, const double* hypers) {
  const TensorClock clock = clock_of(row);
  if (row.product) *row.product = Rule::product_next(hypers, clock);
  if (row.largest) *row.largest = Rule::largest_next(hypers, clock);
  if (row.counts_in_double) {
    *static_cast<double*>(row.count) += 1.0;
  } else {
    *static_cast<float*>(row.count) += 1.0f;
  }
}

template <class Rule>
LRFAST_HD void advance(Clock& clock) {
  if constexpr (Measures<Rule>) {
    clock.distance.used = clock.distance.estimate;
    if (clock.distance.denominator > 0.0) clock.distance.count += 1.0;
  }
  clock.applied += 1;
  clock.steps += 1;
}

}  // namespace lrfast
