#include "reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "core/masters.h"

namespace lrfast::test {
namespace {

// ---- one tensor ------------------------------------------------------------------------------

// A tensor's arrays, converted; they are rounded when they are stored.
template <class T>
struct Values {
  std::vector<T> param;
  std::vector<T> grad;
  std::vector<T> states[kMaxStates];
};

template <class Element>
auto load(const GuardedBytes& bytes) {
  std::vector<compute_t<Element>> values(bytes.size() / sizeof(Element));
  for (size_t i = 0; i < values.size(); ++i) values[i] = to_compute(bytes.as<Element>()[i]);
  return values;
}

template <class Element>
void save(const std::vector<compute_t<Element>>& values, GuardedBytes& bytes,
          [[maybe_unused]] const Noise& noise, [[maybe_unused]] int which) {
  for (size_t i = 0; i < values.size(); ++i) {
    if constexpr (std::is_same_v<Element, StochasticBFloat16>) {
      from_compute(values[i], bytes.as<Element>()[i], noise(static_cast<int64_t>(i), which));
    } else {
      from_compute(values[i], bytes.as<Element>()[i]);
    }
  }
}

MasterKind kind_of(const TensorSpec& spec) { return {is_float16(spec.dtypes), spec.master == 1}; }

// Weights of a tensor, with their master bits if it has some.
template <class Param>
auto load_weights(const Tensor& tensor) {
  auto values = load<Param>(tensor.param);
  for (size_t i = 0; i < values.size(); ++i) {
    const TensorSpec& spec = tensor.spec;
    const uint16_t half = spec.master != 0 ? tensor.param.as<uint16_t>()[i] : uint16_t{0};
    const auto join = [&](auto* rests) {
      values[i] = join_master(half, wide_rest(rests[i]), kind_of(spec));
    };
    if (spec.master == 1) join(tensor.master_bits.as<int8_t>());
    if (spec.master == 2) join(tensor.master_bits.as<int16_t>());
  }
  return values;
}

template <class Param>
void save_weights(std::vector<compute_t<Param>> values, Tensor& tensor, const Noise& noise) {
  if constexpr (std::is_same_v<Param, BFloat16> || std::is_same_v<Param, Float16>) {
    uint16_t* halves = tensor.param.as<uint16_t>();
    for (size_t i = 0; tensor.spec.master != 0 && i < values.size(); ++i) {
      const auto split = [&](auto* rests) {
        narrow_rest(split_master(values[i], halves[i], kind_of(tensor.spec)), rests[i]);
      };
      if (tensor.spec.master == 1) split(tensor.master_bits.as<int8_t>());
      if (tensor.spec.master == 2) split(tensor.master_bits.as<int16_t>());
    }
  }
  if (tensor.spec.master == 0) save<Param>(values, tensor.param, noise, 0);
}

template <class Rule, class T>
auto scalars_of(const double* hypers, const TensorClock& clock, const Distance& distance) {
  if constexpr (Measures<Rule>) {
    return Rule::template prepare<T>(hypers, clock, distance, PlainPowers());
  } else {
    return Rule::template prepare<T>(hypers, clock, PlainPowers());
  }
}

TensorClock clock_of(const Tensor& tensor) {
  return {*tensor.count.as<float>(), tensor.spec.has_product ? *tensor.product.as<double>() : -1.0,
          0.0};
}

// States in 8 bits, block by block.
template <StateKind kind>
std::vector<float> load_codes(const GuardedBytes& codes, const GuardedBytes& scales) {
  std::vector<float> values;
  for (size_t i = 0; i < codes.size(); ++i) {
    values.push_back(decode<kind>(codes.data()[i], scales.data()[i / kCodeBlock]));
  }
  return values;
}

template <StateKind kind>
void save_codes(const std::vector<float>& values, GuardedBytes& codes, GuardedBytes& scales,
                const Noise& noise, int which) {
  for (size_t b = 0; b < scales.size(); ++b) {
    const size_t end = std::min(values.size(), (b + 1) * kCodeBlock);
    uint32_t largest = 0;
    for (size_t i = b * kCodeBlock; i < end; ++i) {
      largest = std::max(largest, finite_magnitude(values[i]));
    }
    const uint32_t scale = scale_of<kind>(largest);
    scales.data()[b] = static_cast<uint8_t>(scale);
    for (size_t i = b * kCodeBlock; i < end; ++i) {
      const uint32_t bits = noise(static_cast<int64_t>(i), which);
      codes.data()[i] = static_cast<uint8_t>(encode<kind>(values[i], scale, bits));
    }
  }
}

// One tensor's learning rates, by the mean square of its ratios.
template <class Rule, uint8_t form, class T>
void clip_rates(const Values<T>& values, T factor, double clipping, const TensorClock& clock,
                double* hypers) {
  const auto scalars = scalars_of<Rule, T>(hypers, clock, {});
  double squares = 0.0;
  for (size_t i = 0; i < values.param.size(); ++i) {
    T states[kMaxStates] = {};
    for (int k = 0; k < kMaxStates; ++k) {
      if (!values.states[k].empty()) states[k] = values.states[k][i];
    }
    T grad = values.grad[i] * factor;
    Rule::template step<form>(values.param[i], grad, states, scalars);
    const T ratio = Rule::ratio(grad, states, scalars);
    squares += ratio * ratio;
  }
  const double size = std::sqrt(squares / static_cast<double>(values.param.size()));
  for (const int rate : {0, kDecayRate}) hypers[rate] /= std::max(1.0, size / clipping);
}

// Steps of a whole tensor, and then which of them are made: a signed zero has no sign.
template <class T>
void move_by_steps(const UpdateOptions& update, const std::vector<T>& moves,
                   const std::vector<T>& grads, T shrink, std::vector<T>& params) {
  double agreeing = 0.0;
  const auto sign = [](T value) { return (value > 0) - (value < 0); };
  for (size_t i = 0; i < moves.size(); ++i) agreeing += sign(moves[i]) * sign(grads[i]) > 0;
  const double share = agreeing / static_cast<double>(moves.size());
  const T scale = static_cast<T>(update.cautious ? 1.0 / std::max(share, 1e-3) : 1.0);
  for (size_t i = 0; i < moves.size(); ++i) {
    const bool is_made = !update.cautious || sign(moves[i]) * sign(grads[i]) > 0;
    const T move = is_made ? moves[i] * scale : T(0);
    const bool decays = !update.cautious_decay || sign(move) * sign(params[i]) >= 0;
    params[i] = (decays ? params[i] * shrink : params[i]) - move;
  }
}

template <class T>
LRFAST_NOINLINE void apply_rule(const Tensor& tensor, int rule, const double* given, T factor,
                                const UpdateOptions& update, const Distance& distance,
                                Values<T>& values) {
  std::vector<double> hypers(given, given + kHyperSlots);
  Rules::visit(rule, [&]<class Rule>() {
    with_form<Rule>(tensor.spec.form, [&]<uint8_t form>() {
      if constexpr (kTakesClipping<Rule>) {
        if (update.clipping > 0.0) {
          clip_rates<Rule, form>(values, factor, update.clipping, clock_of(tensor), hypers.data());
        }
      }
      const auto scalars = scalars_of<Rule, T>(hypers.data(), clock_of(tensor), distance);
      std::vector<T> moves;
      std::vector<T> grads;
      if constexpr (Steps<Rule, form>) {
        for (auto* kept : {&moves, &grads}) kept->reserve(values.param.size());
      }
      for (size_t i = 0; i < values.param.size(); ++i) {
        T states[kMaxStates] = {};
        for (size_t k = 0; k < tensor.states.size(); ++k) states[k] = values.states[k][i];
        T grad = values.grad[i] * factor;
        if constexpr (Steps<Rule, form>) {
          const auto step = Rule::template step<form>(values.param[i], grad, states, scalars);
          moves.push_back(step.numerator / step.denominator);
          grads.push_back(grad);
        } else {
          Rule::template apply<form>(values.param[i], grad, states, scalars);
        }
        for (size_t k = 0; k < tensor.states.size(); ++k) values.states[k][i] = states[k];
      }
      T shrink = T(1);
      if constexpr (kDecouples<Rule>) shrink = scalars.shrink;
      move_by_steps(update, moves, grads, shrink, values.param);
    });
  });
}

template <class Param, class State>
LRFAST_NOINLINE void update_tensor(Tensor& tensor, int rule, const double* hypers, double factor,
                                   const UpdateOptions& update, const Distance& distance,
                                   const Noise& noise) {
  using T = compute_t<Param>;
  Values<T> values{load_weights<Param>(tensor), load<Param>(tensor.grad), {}};
  const RuleInfo info = rule_info(rule);
  const StateKind* kinds = info.kinds[tensor.spec.form];
  for (size_t k = 0; k < tensor.states.size(); ++k) {
    if constexpr (std::is_same_v<State, float>) {
      if (tensor.spec.coded) {
        const auto& load_kind = kinds[k] == StateKind::kPositive ? load_codes<StateKind::kPositive>
                                                                 : load_codes<StateKind::kSigned>;
        values.states[k] = load_kind(tensor.states[k], tensor.scales[k]);
        continue;
      }
    }
    values.states[k] = load<State>(tensor.states[k]);
  }
  apply_rule<T>(tensor, rule, hypers, static_cast<T>(factor), update, distance, values);
  save_weights<Param>(values.param, tensor, noise);
  for (int k = 0; k < info.applied_states[tensor.spec.form]; ++k) {
    const int which = k + 1;
    if constexpr (std::is_same_v<State, float>) {
      if (tensor.spec.coded) {
        const auto& save_kind = kinds[k] == StateKind::kPositive ? save_codes<StateKind::kPositive>
                                                                 : save_codes<StateKind::kSigned>;
        save_kind(values.states[k], tensor.states[k], tensor.scales[k], noise, which);
        continue;
      }
    }
    save<State>(values.states[k], tensor.states[k], noise, which);
  }
}

// A tensor's running sum and terms. The driver rounds only what it stores.
template <class Rule, class Param, class State>
Terms<double> measure_tensor(Tensor& tensor, const double* hypers, double factor,
                             const Distance& distance, const Noise& noise) {
  using T = compute_t<Param>;
  const int running = rule_info(kPlace<Rule>).applied_states[tensor.spec.form];
  const auto scalars = scalars_of<Rule, T>(hypers, clock_of(tensor), distance);
  std::vector<T> sums = load<State>(tensor.states[running]);
  const std::vector<T> seen = load<State>(tensor.states[Rule::kSeen[tensor.spec.form]]);
  const std::vector<T> params = load<Param>(tensor.param);
  const std::vector<T> grads = load<Param>(tensor.grad);
  Terms<double> total{};
  for (size_t i = 0; i < sums.size(); ++i) {
    const T grad = grads[i] * static_cast<T>(factor);
    const auto terms = Rule::measure(params[i], grad, sums[i], seen[i], scalars);
    if (!(scalars.numerator_weight > 0)) continue;
    total.first += static_cast<double>(terms.first) * scalars.numerator_weight;
    total.second += static_cast<double>(terms.second);
  }
  save<State>(sums, tensor.states[running], noise, running + 1);
  return tensor.spec.counted ? total : Terms<double>{};
}

std::vector<double> doubles(DtypePair dtypes, const GuardedBytes& bytes) {
  std::vector<double> values;
  with_types(dtypes, [&]<class Param, class State>() {
    const auto loaded = load<Param>(bytes);
    values.assign(loaded.begin(), loaded.end());
  });
  return values;
}

std::vector<double> weights_of(const Tensor& tensor) {
  std::vector<double> values;
  with_types(tensor.spec.dtypes, [&]<class Param, class State>() {
    const auto loaded = load_weights<Param>(tensor);
    values.assign(loaded.begin(), loaded.end());
  });
  return values;
}

void average_tensor(Tensor& tensor, double weight) {
  with_types(tensor.spec.dtypes, [&]<class Param, class State>() {
    using T = compute_t<Param>;
    const std::vector<T> params = load_weights<Param>(tensor);
    for (size_t i = 0; i < params.size(); ++i) {
      T& average = tensor.average.as<T>()[i];
      if (weight == 1.0)
        average = params[i];
      else
        average += (params[i] - average) * static_cast<T>(weight);
    }
  });
}

// ---- the whole step --------------------------------------------------------------------------

bool is_updated(const Plan& plan, const Tensor& tensor) {
  return tensor.spec.has_grad && plan.groups[tensor.spec.group].frozen == 0;
}

double inverse_scale(const Plan& plan) {
  return plan.options.scale == 0 ? 1.0 : static_cast<float>(1.0 / plan.options.scale);
}

void take_norms(Plan& plan) {
  const size_t groups = plan.groups.size();
  std::vector<double> squares(groups + 2, 0.0);
  for (const Tensor& tensor : plan.tensors) {
    if (!is_updated(plan, tensor) || !tensor.spec.counted) continue;
    for (const double grad : doubles(tensor.spec.dtypes, tensor.grad)) {
      squares[tensor.spec.group] += grad * grad;
      squares[groups] += grad * grad;
      if (plan.groups[tensor.spec.group].max_norm == 0.0) squares[groups + 1] += grad * grad;
    }
  }
  for (size_t i = 0; i < squares.size(); ++i) {
    plan.norms.as<double>()[i] = std::sqrt(squares[i]) * inverse_scale(plan);
  }
}

bool is_left_out(const Plan& plan) {
  if (plan.options.has_found_inf && plan.options.found_inf != 0) return true;
  return plan.options.skip_nonfinite && !std::isfinite(plan.norms.as<double>()[plan.groups.size()]);
}

double factor_of(const Plan& plan, int32_t group) {
  const bool has_own = plan.groups[group].max_norm > 0.0;
  const double max_norm = has_own ? plan.groups[group].max_norm : plan.options.max_norm;
  if (max_norm <= 0.0) return inverse_scale(plan);
  const double norm = plan.norms.as<double>()[has_own ? group : plan.groups.size() + 1];
  if (std::isnan(norm)) return NAN;
  return inverse_scale(plan) * std::min(1.0, max_norm / (norm + 1e-6));
}

void zero_gradients(Plan& plan) {
  for (Tensor& tensor : plan.tensors) {
    if (tensor.spec.has_grad) std::memset(tensor.grad.data(), 0, tensor.grad.size());
  }
}

using HyperRows = std::vector<std::vector<double>>;

HyperRows resolve(Plan& plan, const StepTables& t, int64_t step) {
  HyperRows rows;
  const RuleInfo info = rule_info(plan.rule);
  for (size_t g = 0; g < plan.groups.size(); ++g) {
    const GroupRow& group = plan.groups[g];
    const ScheduleValues values = evaluate_schedule(t.inputs->schedules, group.schedule, step);
    rows.emplace_back(group.hypers, group.hypers + kMaxHypers);
    rows[g].push_back(group.hypers[0]);
    rows[g][0] = group.hypers[0] * values.rate;
    if (t.inputs->rate_scale) rows[g][0] *= *t.inputs->rate_scale;
    if (!plan.options.update.unscheduled_decay) rows[g][kDecayRate] = rows[g][0];
    if (values.cycles_momentum && info.momentum >= 0) rows[g][info.momentum] = values.momentum;
    rows[g][info.weight_decay] *= values.weight_decay;
    plan.rates.as<double>()[g] = rows[g][0];
  }
  return rows;
}

template <class Rule>
void measure(Plan& plan, const StepTables& t, const HyperRows& hypers) {
  Clock& clock = *plan.clock.as<Clock>();
  Terms<double> total{};
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    Tensor& tensor = plan.tensors[i];
    if (!is_updated(plan, tensor)) continue;
    const int32_t group = tensor.spec.group;
    const Noise noise = Noise::at(plan.options.seed, t.tensors[i].number, clock.steps);
    with_types(tensor.spec.dtypes, [&]<class Param, class State>() {
      const auto terms = measure_tensor<Rule, Param, State>(
          tensor, hypers[group].data(), factor_of(plan, group), clock.distance, noise);
      total.first += terms.first;
      total.second += terms.second;
    });
  }
  if (!plan.groups.empty()) Rule::estimate(plan.groups[0].hypers, total, clock.distance);
}

void advance_distance(Distance& distance) {
  distance.used = distance.estimate;
  distance.count += distance.denominator > 0.0 ? 1.0 : 0.0;
}

// Updates, averages and advances one tensor; adds the squares of its change and of its weights.
void step_tensor(Plan& plan, Tensor& tensor, const double* hypers, const Noise& noise,
                 double* sums) {
  const TensorSpec& spec = tensor.spec;
  const std::vector<double> before = weights_of(tensor);
  with_types(spec.dtypes, [&]<class Param, class State>() {
    update_tensor<Param, State>(tensor, plan.rule, hypers, factor_of(plan, spec.group),
                                plan.options.update, plan.clock.as<Clock>()->distance, noise);
  });
  const std::vector<double> after = weights_of(tensor);
  for (size_t i = 0; i < after.size(); ++i) {
    sums[0] += (after[i] - before[i]) * (after[i] - before[i]);
    sums[1] += after[i] * after[i];
  }
  if (spec.has_average) {
    const Options& options = plan.options;
    const int64_t averaged = plan.clock.as<Clock>()->steps - options.average_start;
    double weight = options.average_weight;
    if (options.average_warms_up) weight = std::max(weight, 9.0 / (averaged + 10.0));
    average_tensor(tensor, averaged < 0 ? 1.0 : weight);
  }
  float& count = *tensor.count.as<float>();
  Rules::visit(plan.rule, [&]<class Rule>() {
    if (!spec.has_product) return;
    double& product = *tensor.product.as<double>();
    product = Rule::product_next(hypers, {count, product, 0.0});
  });
  count += 1.0f;
}

void write_records(Plan& plan, int64_t step, const std::vector<double>& sums) {
  const int64_t groups = static_cast<int64_t>(plan.groups.size());
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t line = (step % plan.options.telemetry) * groups + g;
    double* record = plan.records.as<double>() + line * kRecordFields;
    record[0] = plan.rates.as<double>()[g];
    record[1] = plan.norms.as<double>()[g];
    record[2] = std::sqrt(sums[2 * g]);
    record[3] = std::sqrt(sums[2 * g + 1]);
  }
}

}  // namespace

void reference_step(Plan& plan) {
  const StepTables t = plan.tables();
  if (plan.has_stop && plan.stop != 0.0) return;
  if (plan.has_norms()) take_norms(plan);
  if (!is_left_out(plan)) {
    Clock& clock = *plan.clock.as<Clock>();
    const HyperRows hypers = resolve(plan, t, clock.applied);
    Rules::visit(plan.rule, [&]<class Rule>() {
      if constexpr (Measures<Rule>) measure<Rule>(plan, t, hypers);
    });
    std::vector<double> sums(2 * plan.groups.size(), 0.0);
    for (size_t i = 0; i < plan.tensors.size(); ++i) {
      Tensor& tensor = plan.tensors[i];
      if (!is_updated(plan, tensor)) continue;
      const int32_t group = tensor.spec.group;
      const Noise noise = Noise::at(plan.options.seed, t.tensors[i].number, clock.steps);
      step_tensor(plan, tensor, hypers[group].data(), noise, &sums[2 * group]);
    }
    if (plan.options.telemetry > 0) write_records(plan, clock.steps, sums);
    if (rule_info(plan.rule).measures) advance_distance(clock.distance);
    clock.applied += 1;
    clock.steps += 1;
  }
  if (plan.options.zero) zero_gradients(plan);
}

}  // namespace lrfast::test
