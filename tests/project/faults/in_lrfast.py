"""Faults in the Python half: what it checks, restores, counts, saves and suggests."""

from __future__ import annotations

from .fault import Fault

OPTIM = [
    Fault(
        "reordered-parameters-swap-their-states",
        "lrfast/optim",
        "params = [places[name] for name in wanted]",
        'params = list(group["params"])',
        "test_names_in_state_dicts.py",
    ),
    Fault(
        "a-step-within-ema-parameters-is-lost",
        "lrfast/optim",
        "        if self._holds_average:\n",
        "        if self._holds_average and False:\n",
        "test_ema_and_telemetry.py",
    ),
    Fault(
        "the-average-warms-up-again-after-a-load",
        "lrfast/optim",
        "averages_by_step = options.ema_start > 0 or options.ema_warmup",
        "averages_by_step = False",
        "test_ema_and_telemetry.py",
    ),
    Fault(
        "a-float32-state-of-a-half-parameter-is-loaded-as-half",
        "lrfast/optim",
        "if value.dtype.itemsize > loaded[name].dtype.itemsize:",
        "if False and value.dtype.itemsize > loaded[name].dtype.itemsize:",
        "test_state_dicts.py test_mixed_dtypes.py",
    ),
    Fault(
        "an-average-in-the-parameters-own-half-type",
        "lrfast/optim",
        "return torch.float32 if is_half else param.dtype",
        "return param.dtype",
        "test_ema_and_telemetry.py",
    ),
    Fault(
        "averaged-weights-stay-in-the-model",
        "lrfast/optim",
        "for param, _, own in averaged:\n                    param.copy_(own)",
        "for param, _, _own in averaged:\n                    param.copy_(param)",
        "test_ema_and_telemetry.py",
    ),
    Fault(
        "averaged-weights-stay-after-an-exception",
        "lrfast/optim",
        "        try:\n"
        "            with torch.no_grad():\n"
        "                for param, average, _ in averaged:\n"
        "                    param.copy_(average)\n"
        "            yield\n"
        "        finally:\n",
        "        if True:\n"
        "            with torch.no_grad():\n"
        "                for param, average, _ in averaged:\n"
        "                    param.copy_(average)\n"
        "            yield\n"
        "        if True:\n",
        "test_ema_and_telemetry.py",
    ),
    Fault(
        "a-loaded-schedule-starts-anew",
        "lrfast/optim",
        'applied = entry["schedule_step"]',
        "applied = 0",
        "test_state_dicts.py test_live_schedules.py",
    ),
    Fault(
        "schedules-of-the-wrong-groups",
        "lrfast/optim",
        "[-1 if s is None else distinct.index(s) for s in self.schedules],",
        "[-1 if s is None else len(distinct) - 1 - distinct.index(s) for s in self.schedules],",
        "test_live_schedules.py",
    ),
    Fault(
        "current-rates-without-the-plateaus-factor",
        "lrfast/optim",
        "return [rate * scale for rate in self._scheduled_rates()]",
        "return [rate for rate in self._scheduled_rates() if scale]",
        "test_plateau.py test_greedy.py",
    ),
    Fault(
        "the-host-driver-goes-on-after-a-skipped-step",
        "lrfast/optim",
        "if self._has_stepped and not (",
        "if self._has_stepped or not (",
        "test_points.py test_sweeps.py test_user_steps.py test_tuner_options.py",
    ),
    Fault(
        "the-host-driver-leaves-the-momentum",
        "lrfast/optim",
        "            if momentum is not None:\n                set_momentum(group, momentum)\n",
        "",
        "test_tuner.py test_stages.py test_sweeps.py test_no_trace.py",
    ),
    Fault(
        "the-plateau-waits-one-look-longer",
        "lrfast/optim",
        "is_cut = bad > self.patience",
        "is_cut = bad > self.patience + 1",
        "test_plateau.py",
    ),
    Fault(
        "the-plateau-counts-while-it-cools-down",
        "lrfast/optim",
        'counts = state["cooldown"] == 0',
        'counts = state["cooldown"] >= 0',
        "test_plateau.py",
    ),
    Fault(
        "the-telemetry-of-a-full-ring-begins-one-early",
        "lrfast/optim",
        "first = max(self._clock_at_start[1], steps - capacity)",
        "first = max(self._clock_at_start[1], steps - capacity - 1)",
        "test_ema_and_telemetry.py",
    ),
]

TRAINING = [
    Fault(
        "a-packed-weight-stops-the-snapshot",
        "lrfast/training",
        "is_idle = isinstance(tensor, nn.Parameter) and tensor.grad is None",
        "is_idle = False",
        "test_idle_models.py",
    ),
    Fault(
        "the-loss-of-an-accumulated-update-is-a-sum",
        "lrfast/training",
        "                    loss = loss / len(micro_batches)\n",
        "                    loss = loss * 1.0\n",
        "test_sweeps.py test_tuner_options.py",
    ),
    Fault(
        "rows-of-a-batch-count-for-the-mean-alone",
        "lrfast/training",
        "reshape(()), batch_size(batch)",
        "reshape(()), 1",
        "test_points.py test_sweeps.py",
    ),
    Fault(
        "evaluation-leaves-the-model-in-it",
        "lrfast/training",
        "        for module, mode in modes:\n            module.training = mode\n",
        "        del modes\n",
        "test_stages.py test_tuner.py test_points.py",
    ),
    Fault(
        "the-snapshot-forgets-modes",
        "lrfast/training",
        "        for module, mode in self.modes.values():\n            module.training = mode\n",
        "",
        "test_snapshot_model.py",
    ),
    Fault(
        "the-snapshot-forgets-gradients",
        "lrfast/training",
        "            parameter.grad = grad\n",
        "",
        "test_snapshot_model.py",
    ),
    Fault(
        "the-snapshot-forgets-the-generators-of-loaders",
        "lrfast/training",
        "                    original.set_state(copied)\n",
        "                    pass\n",
        "test_snapshot_surroundings.py",
    ),
    Fault(
        "the-snapshot-forgets-numpys-generator",
        "lrfast/training",
        "        np.random.set_state(self.numpy)\n",
        "",
        "test_snapshot_surroundings.py test_no_trace.py",
    ),
    Fault(
        "new-keys-stay-in-the-optimizers-state",
        "lrfast/training",
        "for key in original.keys() - copied.keys():",
        "for key in ():",
        "test_snapshot_model.py",
    ),
    Fault(
        "the-last-batches-of-a-pass-are-dropped",
        "lrfast/training",
        "            if window:\n                yield window\n            raise\n",
        "            raise\n",
        "test_sweeps.py test_user_steps.py test_points.py",
    ),
    Fault(
        "tied-batches-are-moved-as-lists",
        "lrfast/training",
        "return type(batch)(*(to_device(value, device) for value in batch))",
        "return [to_device(value, device) for value in batch]",
        "test_points.py test_range_test.py test_sweeps.py",
    ),
]

RANGE_TEST = [
    Fault(
        "a-range-test-cannot-be-pickled",
        "lrfast/range_test",
        'return vars(self) | {"suggestions": dict(self.suggestions)}',
        "return dict(vars(self))",
        "test_copied_objects.py",
    ),
    Fault(
        "repeated-sweeps-go-on-from-the-last-ones-weights",
        "lrfast/range_test",
        "                self.saved.restore()\n                _reseed(",
        "                _reseed(",
        "test_repeats.py",
    ),
    Fault(
        "repeated-sweeps-see-the-same-numbers",
        "lrfast/range_test",
        "                _reseed(repeat, self.loaders)\n",
        "",
        "test_repeats.py",
    ),
    Fault(
        "a-linear-sweep-ends-a-step-late",
        "lrfast/range_test",
        "return schedules.linear(first, last, self.num_iter - 1)",
        "return schedules.linear(first, last, self.num_iter)",
        "test_sweeps.py",
    ),
    Fault(
        "ratios-to-the-first-group",
        "lrfast/range_test",
        "    highest = rates[reference]\n",
        "    highest = rates[0]\n",
        "test_sweeps.py test_range_test.py",
    ),
    Fault(
        "the-sweep-runs-in-evaluation-mode",
        "lrfast/range_test",
        "        if not training.model.training:\n            training.model.train()\n",
        "",
        "test_sweeps.py test_points.py test_no_trace.py",
    ),
    Fault(
        "a-range-from-high-to-low-is-taken",
        "lrfast/range_test",
        '    if end <= start:\n        raise ValueError(\n            f"end_lr{which}',
        '    if end == start:\n        raise ValueError(\n            f"end_lr{which}',
        "test_bad_arguments.py test_sweeps.py test_range_test.py",
    ),
]

FINETUNE = [
    Fault(
        "a-loader-that-outlasts-its-length-fills-the-curve",
        "lrfast/finetune",
        "if self._curve._make_room(run.epoch_steps):",
        "if False and self._curve._make_room(run.epoch_steps):",
        "test_lengths.py",
    ),
    Fault(
        "a-packed-weight-stops-the-best-model",
        "lrfast/finetune",
        "    except NotImplementedError:\n        return None\n",
        "    except KeyError:\n        return None\n",
        "test_idle_models.py",
    ),
    Fault(
        "early-stop-looks-once-too-often",
        "lrfast/finetune",
        "if self.waited >= self.patience:",
        "if self.waited > self.patience:",
        "test_tuner_options.py test_stages.py test_tuner.py",
    ),
    Fault(
        "a-nan-is-the-best-value",
        "lrfast/finetune",
        "return not math.isnan(value)",
        "return True",
        "test_tuner_options.py test_stages.py",
    ),
    Fault(
        "the-best-models-buffers-are-not-kept",
        "lrfast/finetune/_best_model.py",
        "return dict(chain(model.named_parameters(), model.named_buffers()))",
        "return dict(chain(model.named_parameters(), []))",
        "test_tuner_options.py test_stages.py test_tuner.py",
    ),
    Fault(
        "a-resumed-pass-begins-at-its-first-batch",
        "lrfast/finetune",
        "        for _ in range(run.used):\n            next(batches, None)\n",
        "",
        "test_resume.py",
    ),
    Fault(
        "a-resumed-pass-has-another-order",
        "lrfast/finetune",
        "        run.order.restore(self._loaders)\n        batches",
        "        batches",
        "test_resume.py",
    ),
    Fault(
        "a-stage-is-not-clipped",
        "lrfast/training",
        "torch.nn.utils.clip_grad_norm_(params, self.max_grad_norm)",
        'torch.nn.utils.clip_grad_norm_(params, float("inf"))',
        "test_tuner_options.py",
    ),
    Fault(
        "every-epoch-is-the-first-ones-pass",
        "lrfast/finetune",
        "run.order, run.has_ended_pass = None, False",
        "run.has_ended_pass = False",
        "test_stages.py test_tuner.py test_resume.py",
    ),
    Fault(
        "validation-weighs-batches-alike",
        "lrfast/finetune",
        "            count = batch_size(targets)\n",
        "            count = 1\n",
        "test_tuner.py test_stages.py test_tuner_options.py",
    ),
]

GROUPS = [
    Fault(
        "unfreezing-makes-integers-require-gradients",
        "lrfast/groups",
        "parameter.requires_grad = is_number and not frozen",
        "parameter.requires_grad = not frozen",
        "test_idle_models.py",
    ),
    Fault(
        "frozen-groups-keep-their-gradients",
        "lrfast/groups",
        "            if not parameter.requires_grad:\n                parameter.grad = None\n",
        "",
        "test_freezing.py",
    ),
    Fault(
        "what-was-frozen-at-the-start-trains-later",
        "lrfast/groups",
        "is_number and not frozen and position not in kept",
        "is_number and not frozen",
        "test_freezing.py",
    ),
    Fault(
        "negative-groups-count-from-the-wrong-end",
        "lrfast/groups",
        "n % count",
        "abs(n) % count",
        "test_freezing.py",
    ),
    Fault(
        "norms-decay",
        "lrfast/groups",
        "return norm_parameters(model) | biases | vectors",
        "return biases",
        "test_group_rates.py test_explicit_groups.py",
    ),
]

SCHEDULES = [
    Fault(
        "one-cycle-ends-a-step-late",
        "lrfast/schedules",
        "rate = _phases(ends, 1 / div, 1.0,",
        "rate = _phases([*ends[:-1], ends[-1] + 1], 1 / div, 1.0,",
        "test_schedules.py",
    ),
    Fault(
        "one-cycles-momentum-follows-the-rate",
        "lrfast/schedules",
        "momenta = _phases(ends, high, low, high,",
        "momenta = _phases(ends, low, high, low,",
        "test_schedules.py",
    ),
    Fault(
        "the-last-cycle-misses-its-minimum",
        "lrfast/schedules",
        "fall = max(steps - warmup - is_last, 1)",
        "fall = steps - warmup",
        "test_random_schedules.py test_peer_schedules.py",
    ),
    Fault(
        "a-repetition-comes-a-step-late",
        "lrfast/schedules",
        "(replace(t[0], period=total // t[0].stride),)",
        "(replace(t[0], period=total // t[0].stride + 1),)",
        "test_epochs.py",
    ),
    Fault(
        "triangular2-halves-nothing",
        "lrfast/schedules",
        'gain = 0.5 if mode == "triangular2" else 1.0',
        "gain = 1.0",
        "test_schedules.py test_torch_schedule_values.py test_torch_schedulers.py",
    ),
    Fault(
        "a-table-that-is-decoded-loses-its-segments-times",
        "lrfast/schedules",
        "return cls(begin, t0, span, first, last, shape, power, steps)",
        "return cls(begin, begin, span, first, last, shape, power, steps)",
        "test_epochs.py",
    ),
]

SUGGEST = [
    Fault(
        "the-minimum-itself",
        "lrfast/suggest",
        'return Suggestion(lowest / 10, "minimum", reason',
        'return Suggestion(lowest, "minimum", reason',
        "test_suggest.py",
    ),
    Fault(
        "the-valley-as-if-it-had-begun-where-it-does",
        "lrfast/suggest",
        "index = end - length + length // 3 + length // 6",
        "index = end - length + 1 + length // 3 + length // 6",
        "test_suggest.py",
    ),
    Fault(
        "steepest-per-point-not-per-decade",
        "lrfast/suggest",
        "index = int(np.argmin(np.diff(curve) / np.diff(np.log(rates))))",
        "index = int(np.argmin(np.diff(curve)))",
        "test_suggest.py",
    ),
    Fault(
        "auto-ignores-what-such-models-train-at",
        "lrfast/suggest",
        "lr *= min(max(moved, 1 / _FARTHEST), _FARTHEST)",
        "lr *= 1.0 if moved else 0.0",
        "test_raw_curve_methods.py test_typical_rates.py",
    ),
]

FILES = [
    Fault(
        "a-checkpoint-is-written-in-place",
        "lrfast/_utils",
        "        os.replace(new, target)\n",
        "        target.write_bytes(new.read_bytes())\n",
        "test_loading_files.py test_kills.py",
    ),
    Fault(
        "an-unfinished-file-is-left-behind",
        "lrfast/_utils",
        "        new.unlink(missing_ok=True)\n        raise\n",
        "        raise\n",
        "test_result_files.py test_kills.py test_out_of_memory.py test_interrupted_stages.py",
    ),
    Fault(
        "a-file-may-hold-more-than-data",
        "lrfast/_utils",
        'map_location="cpu", weights_only=True)',
        'map_location="cpu", weights_only=False)',
        "test_untrusted_files.py test_loading_files.py",
    ),
    Fault(
        "a-tensor-without-memory-for-its-elements",
        "lrfast/_utils",
        "    if value.nbytes > value.untyped_storage().nbytes():\n",
        "    if value.nbytes < 0:\n",
        "test_loading_errors.py",
    ),
]

IN_LRFAST = [
    *OPTIM,
    *TRAINING,
    *RANGE_TEST,
    *FINETUNE,
    *GROUPS,
    *SCHEDULES,
    *SUGGEST,
    *FILES,
]
