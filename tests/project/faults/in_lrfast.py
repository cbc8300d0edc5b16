"""Faults in the Python half: what it checks, restores, counts, saves and suggests."""

from __future__ import annotations

from .fault import Fault

OPTIM = [
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
        "frozen-groups-keep-their-gradients",
        "lrfast/groups",
        "            if not parameter.requires_grad:\n                parameter.grad = None\n",
        "",
        "test_freezing.py",
    ),
    Fault(
        "what-was-frozen-at-the-start-trains-later",
        "lrfast/groups",
        "requires_grad_(not frozen and position not in kept)",
        "requires_grad_(not frozen)",
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
        "return norm_parameters(model) | biases | {p for p in names if p.dim() <= 1}",
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

INTEGRATIONS = [
    Fault(
        "a-sweep-inside-trainer-does-not-clip",
        "lrfast/integrations/huggingface.py",
        "norm = trainer._clip_grad_norm(model) if args.max_grad_norm > 0 else None",
        "norm = None",
        "test_huggingface_updates.py",
    ),
    Fault(
        "a-sweep-inside-trainer-leaves-out-the-callbacks-on-gradients",
        "lrfast/integrations/huggingface.py",
        '        self._call("on_pre_optimizer_step")\n',
        "",
        "test_huggingface_updates.py",
    ),
    Fault(
        "a-sweep-before-training-leaves-the-model-marked-as-prepared",
        "lrfast/integrations/huggingface.py",
        '("forward", "_original_forward", "_is_accelerate_prepared")',
        '("forward", "_original_forward")',
        "test_huggingface_updates.py",
    ),
    Fault(
        "attributes-of-a-trainer-keep-what-a-sweep-left",
        "lrfast/integrations/huggingface.py",
        "            table.update(kept)\n",
        "            continue\n",
        "test_huggingface_updates.py",
    ),
    Fault(
        "a-sweep-under-accelerate-begins-within-a-window",
        "lrfast/integrations/accelerate.py",
        "        accelerator.step = 0\n",
        "",
        "test_accelerate_updates.py",
    ),
    Fault(
        "a-prepared-optimizer-loses-its-accumulation",
        "lrfast/range_test/_lr_find.py",
        "        accumulate = steps\n",
        "",
        "test_accelerate_updates.py",
    ),
    Fault(
        "a-new-plan-begins-at-its-first-step",
        "lrfast/optim",
        "self._load_entry(given[0].get(ENGINE_ENTRY, {}), keeps_own=chosen[0][0])",
        "self._load_entry({} if chosen[0][0] else given[0].get(ENGINE_ENTRY, {}))",
        "test_resume_orders.py test_huggingface.py",
    ),
    Fault(
        "a-schedule-of-another-kind-goes-on-unasked",
        "lrfast/optim",
        "not (one and other) or one.name != other.name or",
        "not (one and other) or",
        "test_resume_orders.py test_sharded.py",
    ),
    Fault(
        "lightnings-callbacks-are-left-out-of-a-sweep",
        "lrfast/integrations/lightning.py",
        "trainer.callbacks = [observer, *running]",
        "trainer.callbacks = [observer]",
        "test_lightning_updates.py",
    ),
    Fault(
        "a-sweeps-first-batch-is-lightnings-second",
        "lrfast/integrations/lightning.py",
        "        loop.batch_progress.reset_on_run()\n",
        "",
        "test_lightning_updates.py",
    ),
    Fault(
        "a-window-of-micro-batches-goes-on-in-the-next-pass",
        "lrfast/training/_data.py",
        "if isinstance(window[-1], PlacedBatch) and window[-1].is_last:",
        "if False and isinstance(window[-1], PlacedBatch) and window[-1].is_last:",
        "test_points.py",
    ),
    Fault(
        "lightnings-metrics-keep-what-a-sweep-counted",
        "lrfast/integrations/lightning.py",
        "return KeptObjects([*roots, *schedulers, *metrics], is_part)",
        "return KeptObjects([*roots, *schedulers, *metrics[:0]], is_part)",
        "test_lightning_updates.py test_lightning.py",
    ),
    Fault(
        "an-engines-counter-stands-still",
        "lrfast/integrations/ignite.py",
        "        state.iteration += 1\n",
        "",
        "test_ignite_fastai_updates.py",
    ),
    Fault(
        "an-engines-scheduler-overwrites-what-is-found",
        "lrfast/integrations/ignite.py",
        "        if _sets_rate(handler, optimizer):",
        "        if False and _sets_rate(handler, optimizer):",
        "test_ignite_fastai_updates.py",
    ),
    Fault(
        "another-network-of-an-engine-stays-as-a-sweep-left-it",
        "lrfast/integrations/ignite.py",
        'options["others"] = [*options.get("others", ()), *others, kept]',
        'options["others"] = [*options.get("others", ()), *others[:0], kept]',
        "test_ignite_fastai_updates.py",
    ),
    Fault(
        "a-learner-sweeps-without-its-weight-decay",
        "lrfast/integrations/fastai.py",
        "            learner.opt.set_hypers(wd=learner.wd)\n",
        "            pass\n",
        "test_ignite_fastai_updates.py",
    ),
    Fault(
        "a-range-test-is-silent-about-what-it-sets",
        "lrfast/integrations/_shared.py",
        'self._announce(f"learning rate set from',
        'str(f"learning rate set from',
        "test_lightning_updates.py test_ignite_fastai_updates.py",
    ),
    Fault(
        "a-step-may-set-a-learning-rate-in-a-sweep",
        "lrfast/training/_step.py",
        "            _check_rates(training.optimizer, rates)\n",
        "            pass\n",
        "test_lightning_updates.py",
    ),
]

IN_LRFAST = [
    *OPTIM,
    *TRAINING,
    *RANGE_TEST,
    *INTEGRATIONS,
    *FINETUNE,
    *GROUPS,
    *SCHEDULES,
    *SUGGEST,
    *FILES,
]
