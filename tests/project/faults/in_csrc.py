"""Faults in the engine: rules, schedules, the curve, the drivers, the bindings.

Where a program of tests/cpp notices, it comes first, as that needs no build of the extension.
"""

from __future__ import annotations

from .fault import Fault


def program(*names: str) -> str:
    """The tests/cpp programs of these names, under the address sanitizer."""
    return " ".join(f"test_cpp_programs.py::test_program[{name}-address]" for name in names)


def steps_of(rule: str) -> str:
    """The steps of a rule against its float64 reference, which alone knows the formulas."""
    return f"test_step.py -k 'test_every_step_is_the_references and {rule}'"


RULES = [
    Fault(
        "adam-no-bias-correction",
        "csrc/core/rule.h",
        "return hypers[Rule::kRate] / (1.0 - power);",
        "return hypers[Rule::kRate];",
        steps_of("adam"),
    ),
    Fault(
        "adam-amsgrad-smallest",
        "csrc/core/rules",
        "largest = states[2] > square ? states[2] : square;",
        "largest = states[2] < square ? states[2] : square;",
        steps_of("adam"),
    ),
    Fault(
        "adamax-largest-does-not-decay",
        "csrc/core/rules",
        "larger(largest * s.beta2,",
        "larger(largest,",
        program("test_rules"),
    ),
    Fault(
        "nadam-product-one-step-late",
        "csrc/core/rules",
        "return clock.product * momentum_at(hypers, clock.count + 1.0);",
        "return clock.product * momentum_at(hypers, clock.count);",
        steps_of("nadam"),
    ),
    Fault(
        "nadam-next-momentum-is-this-one",
        "csrc/core/rules",
        "momentum_at(hypers, clock.count + 2.0)",
        "momentum_at(hypers, clock.count + 1.0)",
        steps_of("nadam"),
    ),
    Fault(
        "nadam-lost-product-is-one-step-short",
        "csrc/core/rules",
        "TensorClock clock{0.0, 1.0, 0.0};",
        "TensorClock clock{1.0, 1.0, 0.0};",
        program("test_rules"),
    ),
    Fault(
        "adam-lost-product-is-one-step-long",
        "csrc/core/rule.h",
        "return integer_power(hypers[Rule::kMomentum], count);",
        "return integer_power(hypers[Rule::kMomentum], count + 1);",
        program("test_rules"),
    ),
    Fault(
        "radam-is-always-rectified",
        "csrc/core/rules",
        "s.rectified = length > 5.0;",
        "s.rectified = true;",
        program("test_rules"),
    ),
    Fault(
        "radam-length-one-step-late",
        "csrc/core/rules",
        "2.0 * static_cast<double>(t) * power / bias;",
        "2.0 * clock.count * power / bias;",
        program("test_rules"),
    ),
    Fault(
        "lion-decay-with-the-wrong-sign",
        "csrc/core/rules",
        "s.shrink = static_cast<T>(1.0 - hypers[kRate] * hypers[kWeightDecay]);",
        "s.shrink = static_cast<T>(1.0 + hypers[kRate] * hypers[kWeightDecay]);",
        steps_of("lion"),
    ),
    Fault(
        "lion-steps-with-the-other-beta",
        "csrc/core/rules",
        "const T step = mean * s.beta1 + grad * s.step_weight;",
        "const T step = mean * s.beta2 + grad * s.mean_weight;",
        steps_of("lion"),
    ),
    Fault(
        "sgd-dampens-the-first-gradient",
        "csrc/core/rules",
        "s.gradient_weight = first ? T(1) : static_cast<T>(1.0 - hypers[kDampening]);",
        "s.gradient_weight = static_cast<T>(1.0 - hypers[kDampening]);",
        steps_of("sgd"),
    ),
    Fault(
        "sgd-nesterov-is-plain-momentum",
        "csrc/core/rules",
        "direction = s.nesterov ? grad + s.momentum * buffer : buffer;",
        "direction = buffer;",
        steps_of("sgd"),
    ),
    Fault(
        "rmsprop-root-of-a-negative-variance",
        "csrc/core/rules",
        "      variance = variance < T(0) ? T(0) : variance;\n",
        "",
        "test_step.py::test_a_variance_that_comes_out_negative_counts_as_zero",
    ),
    Fault(
        "rmsprop-wrong-buffer",
        "csrc/core/rules",
        "T& buffer = states[(form & kWithMean) != 0 ? 2 : 1];",
        "T& buffer = states[1];",
        steps_of("rmsprop"),
    ),
    Fault(
        "adadelta-moves-by-what-it-has-just-moved",
        "csrc/core/rules",
        "std::sqrt((moved + s.eps) / (square + s.eps))",
        "std::sqrt((square + s.eps) / (square + s.eps))",
        program("test_rules"),
    ),
    Fault(
        "schedule-free-mean-after-z-has-moved",
        "csrc/core/rules",
        "s.step = static_cast<T>(rate * (1.0 - beta * (1.0 - share)));",
        "s.step = static_cast<T>(rate * (1.0 - beta));",
        program("test_rules"),
    ),
    Fault(
        "schedule-free-warm-up-one-step-late",
        "csrc/core/rules",
        "hypers[Rule::kRate] * (t / steps)",
        "hypers[Rule::kRate] * (clock.count / steps)",
        program("test_rules"),
    ),
    Fault(
        "schedule-free-largest-rate-is-lost",
        "csrc/core/rules",
        "return rate > clock.largest ? rate : clock.largest;",
        "return rate;",
        "test_schedule_free.py",
    ),
    Fault(
        "adagrad-decays-one-step-early",
        "csrc/core/rules",
        "(1.0 + clock.count * hypers[kRateDecay])",
        "(1.0 + (clock.count + 1.0) * hypers[kRateDecay])",
        steps_of("adagrad"),
    ),
    Fault(
        "maximize-minimizes",
        "csrc/core/rule.h",
        "  grad = sign * grad;\n",
        "  static_cast<void>(sign);\n",
        steps_of("sgd"),
    ),
]

CURVE = [
    Fault(
        "curve-average-without-bias-correction",
        "csrc/core/curve.h",
        "LRFAST_HD double value() const { return sum / weight; }",
        "LRFAST_HD double value() const { return sum; }",
        program("test_curve"),
    ),
    Fault(
        "curve-rates-in-the-first-row",
        "csrc/core/curve.h",
        "double* const row = curve.rates + place * curve.width;",
        "double* const row = curve.rates;",
        program("test_curve"),
    ),
    Fault(
        "curve-grace-one-longer",
        "csrc/core/curve.h",
        "index >= curve.grace) {",
        "index > curve.grace) {",
        program("test_curve"),
    ),
    Fault(
        "curve-a-skipped-loss-that-is-not-finite-is-ignored",
        "csrc/core/curve.h",
        "(skipped && is_finite)",
        "skipped",
        program("test_curve"),
    ),
    Fault(
        "curve-limit-moves-with-the-jump",
        "csrc/core/curve.h",
        "if (s.noise > 0.0 && !(half_square < most)) half_square = most;",
        "static_cast<void>(most);",
        program("test_curve"),
    ),
    Fault(
        "curve-records-past-its-capacity",
        "csrc/core/curve.h",
        "if (index >= curve.capacity || (",
        "if (index > curve.capacity || (",
        program("test_curve"),
    ),
    Fault(
        "curve-median-of-even-counts-is-the-lower",
        "csrc/core/curve.h",
        "    if (numbers % 2 == 1) return lower;\n",
        "    if (numbers > 0) return lower;\n",
        program("test_curve"),
    ),
]

SCHEDULE = [
    Fault(
        "schedule-segment-begins-a-step-late",
        "csrc/core/schedule.h",
        "if (rows[middle].begin <= step) {",
        "if (rows[middle].begin < step) {",
        program("test_schedule"),
    ),
    Fault(
        "schedule-never-repeats",
        "csrc/core/schedule.h",
        "elapsed - static_cast<int64_t>(cycle) * table.period;",
        "elapsed;",
        program("test_schedule"),
    ),
    Fault(
        "schedule-weight-decay-replaces",
        "csrc/core/schedule.h",
        "values.weight_decay *= value;",
        "values.weight_decay = value - 1.0;",
        program("test_schedule"),
    ),
    Fault(
        "schedule-fades-to-zero-not-to-the-floor",
        "csrc/core/schedule.h",
        "return table.floor + (value - table.floor) * exponential(fading);",
        "return value * exponential(fading);",
        program("test_schedule"),
    ),
    Fault(
        "schedule-exponential-too-short-a-series",
        "csrc/core/math.h",
        "for (int k = 14; k >= 1; --k)",
        "for (int k = 9; k >= 1; --k)",
        program("test_math"),
    ),
]

STEP = [
    Fault(
        "the-average-warms-up-one-step-early",
        "csrc/core/step.h",
        "9.0 / (10.0 + static_cast<double>(averaged))",
        "9.0 / (11.0 + static_cast<double>(averaged))",
        program("test_passes") + " test_ema_and_telemetry.py",
    ),
    Fault(
        "the-average-starts-one-step-late",
        "csrc/core/step.h",
        "if (averaged < 0) return 1.0;",
        "if (averaged <= 0) return 1.0;",
        program("test_passes") + " test_ema_and_telemetry.py",
    ),
    Fault(
        "a-count-in-float64-is-read-as-float32",
        "csrc/core/step.h",
        "if (row.counts_in_double) return *static_cast<const double*>(row.count);",
        "if (row.counts_in_double) return *static_cast<const float*>(row.count);",
        "test_tensor_rates.py",
    ),
    Fault(
        "clip-scales-small-gradients-up",
        "csrc/core/step.h",
        "return coefficient < 1.0 ? coefficient : norm == norm ? 1.0 : norm;",
        "return norm == norm ? coefficient : norm;",
        program("test_clipping"),
    ),
    Fault(
        "clip-counts-groups-that-have-their-own-limit",
        "csrc/core/step.h",
        "if (t.groups[g].max_norm <= 0.0) totals.shared += squares;",
        "totals.shared += squares;",
        program("test_clipping"),
    ),
    Fault(
        "clip-norms-are-not-unscaled",
        "csrc/core/step.h",
        "norms[t.num_groups + 1] = std::sqrt(totals.shared) * unscale;",
        "norms[t.num_groups + 1] = std::sqrt(totals.shared);",
        program("test_clipping"),
    ),
    Fault(
        "product-advances-after-the-count",
        "csrc/core/step.h",
        "  const TensorClock clock = clock_of(row);\n  if (row.product)",
        "  TensorClock clock = clock_of(row);\n  clock.count += 1.0;\n  if (row.product)",
        steps_of("nadam"),
    ),
    Fault(
        "momentum-is-not-cycled",
        "csrc/core/step.h",
        "if (values.cycles_momentum) hypers[Rule::kMomentum] = values.momentum;",
        "static_cast<void>(values.momentum);",
        "test_live_schedules.py",
    ),
    Fault(
        "weight-decay-has-no-schedule",
        "csrc/core/step.h",
        "  hypers[Rule::kWeightDecay] *= values.weight_decay;\n",
        "",
        "test_live_schedules.py",
    ),
    Fault(
        "a-step-is-not-skipped-for-found-inf",
        "csrc/core/step.h",
        "*t.gradients.found_inf != 0.0f) return true;",
        "*t.gradients.found_inf != 0.0f) return false;",
        program("test_passes"),
    ),
    Fault(
        "records-one-slot-late",
        "csrc/core/step.h",
        "t.clock->steps % t.totals.capacity;",
        "(t.clock->steps + 1) % t.totals.capacity;",
        program("test_passes"),
    ),
    Fault(
        "average-moves-the-other-way",
        "csrc/core/kernel.h",
        ": average + (value - average) * weight;",
        ": average + (value - average) * (T(1) - weight);",
        program("test_passes"),
    ),
    Fault(
        "bfloat16-rounds-ties-up",
        "csrc/core/dtypes.h",
        "const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);",
        "const uint32_t rounded = bits + 0x8000u;",
        program("test_math"),
    ),
    Fault(
        "stochastic-rounding-adds-half-the-noise",
        "csrc/core/dtypes.h",
        "bits_as<uint32_t>(x) + (noise & 0xffffu)",
        "bits_as<uint32_t>(x) + (noise & 0x7fffu)",
        program("test_noise", "test_math"),
    ),
    Fault(
        "gpu-rounds-nan-to-zero",
        "csrc/core/dtypes.h",
        "static_cast<uint32_t>(sum > before ? sum : before)",
        "static_cast<uint32_t>(sum)",
        program("test_noise"),
    ),
    Fault(
        "states-share-their-noise",
        "csrc/core/noise.h",
        ": which == 2 ? kNext * kNext",
        ": which == 2 ? kNext",
        program("test_noise"),
    ),
    Fault(
        "elements-far-apart-share-their-noise",
        "csrc/cpu/step.cpp",
        "static_cast<uint32_t>(first >> 1) + i",
        "(static_cast<uint32_t>(first) >> 1) + i",
        program("test_large_index"),
    ),
    Fault(
        "noise-is-that-of-the-step-before",
        "csrc/core/noise.h",
        "mix(mix(seed + tensor) + static_cast<uint64_t>(step))",
        "mix(mix(seed + tensor) + static_cast<uint64_t>(step / 2))",
        program("test_noise"),
    ),
]

DRIVER = [
    Fault(
        "norm-counts-what-other-processes-count",
        "csrc/cpu/norms.cpp",
        "if (!is_counted(t, chunk.tensor)) continue;",
        "if (!is_updated(t, chunk.tensor)) continue;",
        program("test_clipping"),
    ),
    Fault(
        "frozen-gradients-are-not-zeroed",
        "csrc/cpu/step.cpp",
        "      if (t.gradients.zero) zero_chunks(t, c, c + 1);\n",
        "",
        program("test_passes"),
    ),
    Fault(
        "scalars-of-another-product",
        "csrc/cpu/step.cpp",
        "clock == clock_ &&",
        "clock.count == clock_.count &&",
        program("test_cpu_step"),
    ),
    Fault(
        "scalars-of-another-group",
        "csrc/cpu/step.cpp",
        "if (row.group == group_ && clock == clock_",
        "if (clock == clock_",
        program("test_cpu_step"),
    ),
    Fault(
        "chunks-reach-past-their-tensor",
        "csrc/cpu/tasks.h",
        "return {begin, std::min(begin + t.chunk_size, t.tensors[chunk.tensor].numel)};",
        "return {begin, begin + t.chunk_size};",
        program("test_cpu_step"),
    ),
    Fault(
        "the-element-behind-the-blocks-is-left-out",
        "csrc/cpu/step.cpp",
        "for (int64_t e = i; e < end; ++e) {",
        "for (int64_t e = i > begin ? i + 1 : i; e < end; ++e) {",
        program("test_step_body"),
    ),
    Fault(
        "a-sum-loses-its-last-elements",
        "csrc/cpu/norms.h",
        "for (; i < count; ++i) add_square(",
        "for (; i + 1 < count; ++i) add_square(",
        program("test_clipping"),
    ),
    Fault(
        "a-whole-step-is-skipped-without-zeroing",
        "csrc/cpu/step.cpp",
        "    if (!t.gradients.zero) return;\n",
        "    if (t.gradients.zero || true) return;\n",
        program("test_passes"),
    ),
]

BINDINGS = [
    Fault(
        "changed-groups-are-not-read",
        "csrc/bindings",
        "      held.version = version;\n      is_unread_ = true;\n",
        "      held.version = version;\n",
        "test_torch_interface.py test_param_groups.py",
    ),
    Fault(
        "replaced-states-go-unnoticed",
        "csrc/bindings",
        "if (state_dict && version_of(state_dict.ptr()) != state_version) return false;",
        "",
        "test_state_dicts.py",
    ),
    Fault(
        "an-average-of-any-dtype",
        "csrc/bindings",
        "if (!found_average.defined() || !is_usable_state(found_average, *this) ||\n"
        "        real_type(found_average) != average_type(param_type)) {",
        "if (!found_average.defined() || !is_usable_state(found_average, *this)) {",
        "test_ema_and_telemetry.py",
    ),
    Fault(
        "a-lazy-negation-is-read-as-it-lies",
        "csrc/bindings",
        "if (is_alike && !grad.is_neg() && !grad.is_conj())",
        "if (is_alike)",
        "test_user_mutations.py test_mixed_dtypes.py",
    ),
    Fault(
        "a-parameter-with-gaps-is-not-updated",
        "csrc/bindings",
        "    if (param.staged_param.defined()) tensor.detach().copy_(param.staged_param);\n",
        "",
        "test_layouts.py",
    ),
    Fault(
        "autograd-hears-of-no-change",
        "csrc/bindings",
        "if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();",
        "",
        "test_user_mutations.py",
    ),
    Fault(
        "a-negative-learning-rate-is-taken",
        "csrc/bindings",
        "const bool may_be_negative = hyper > 0;",
        "const bool may_be_negative = hyper >= 0;",
        "test_optimizer_errors.py",
    ),
    Fault(
        "a-list-of-betas-never-changes",
        "csrc/bindings",
        "(rule_.hypers[k].index < 0 ||\n"
        "                 PyTuple_CheckExact(PyDict_GetItemWithError(group, keys_[k].ptr())));",
        "true;",
        "test_param_groups.py",
    ),
    Fault(
        "a-stride-of-any-length",
        "csrc/bindings",
        'check_steps("stride", stride, 1);',
        "",
        "test_loading_errors.py",
    ),
    Fault(
        "an-inverse-shape-that-rises",
        "csrc/core",
        "s.power = -power;",
        "s.power = power;",
        program("test_schedule"),
    ),
    Fault(
        "a-new-schedule-starts-where-the-old-one-was",
        "csrc/bindings",
        "  for (DevicePlan& plan : plans_) plan.set_clock(0, 0);\n",
        "",
        "test_live_schedules.py",
    ),
    Fault(
        "a-resumed-count-of-steps-begins-at-zero",
        "csrc/bindings",
        "  initial_clock_[1] = steps;\n",
        "",
        "test_ema_and_telemetry.py",
    ),
    Fault(
        "a-derivative-reaches-too-far",
        "csrc/bindings",
        "x.const_data_ptr<double>(), reach},",
        "x.const_data_ptr<double>(), reach + 1},",
        "test_smoothing.py",
    ),
    Fault(
        "staged-gradients-are-not-zeroed",
        "csrc/bindings",
        "    if (settings_.options.zero_grads && param.uses_staged_grad) param.grad().zero_();\n",
        "",
        "test_ema_and_telemetry.py test_around_the_update.py test_layouts.py",
    ),
    Fault(
        "loaded-momentum-counts-as-none",
        "csrc/bindings",
        "return param.starts_fresh ? at::zeros({}, options) : at::ones({}, options);",
        "return at::zeros({}, options);",
        "test_state_dicts.py",
    ),
    Fault(
        "a-parameter-without-a-gradient-must-fit",
        "csrc/bindings/engine.cpp",
        "|| !param.try_inspect()) {\n      param.leave_out();",
        "|| (param.inspect(), false)) {\n      param.leave_out();",
        "test_idle_parameters.py test_idle_models.py",
    ),
    Fault(
        "a-left-out-parameter-never-trains",
        "csrc/bindings/engine.cpp",
        "  if (!param.has_grad() || !reads_grad(param)) return Readiness::kReady;\n",
        "  if (param.is_left_out) return Readiness::kReady;\n",
        "test_idle_parameters.py",
    ),
    Fault(
        "a-traced-step-is-lost",
        "csrc/bindings/engine.cpp",
        "  TORCH_CHECK(!has_proxies &&",
        "  TORCH_CHECK((!has_proxies || true) &&",
        "test_compile.py",
    ),
    Fault(
        "a-half-learning-rate-is-no-number",
        "csrc/bindings/param_groups.cpp",
        "      return tensor.is_complex() ||",
        "      return tensor.is_floating_point() ||",
        "test_tensor_rates.py",
    ),
    Fault(
        "a-half-learning-rate-keeps-the-whole-decay",
        "csrc/bindings/param_groups.cpp",
        "  if (is_decoupled) *decay = decay_beside(",
        "  if (is_decoupled && false) *decay = decay_beside(",
        "test_tensor_rates.py",
    ),
    Fault(
        "a-nan-that-a-group-holds",
        "csrc/bindings",
        "if (!std::isfinite(number) || (!may_be_negative && number < 0.0)) {",
        "if (!may_be_negative && number < 0.0) {",
        "test_optimizer_errors.py",
    ),
]

IN_CSRC = [*RULES, *CURVE, *SCHEDULE, *STEP, *DRIVER, *BINDINGS]
