"""``lr_find``: sweep, restore the model, derive suggestions, and optionally race.

The race verifies the suggestion in short training runs.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from lrfast._utils.arguments import checked
from lrfast._utils.validation import check_count, is_int
from lrfast._utils.wrapped_optimizers import inner_optimizer
from lrfast.range_test import _analysis
from lrfast.range_test._loop import SweepLoop
from lrfast.range_test._priors import WeightStats, rate_prior, weight_stats
from lrfast.range_test._race import RacePlan, one_cycle_for, race
from lrfast.range_test._result import RangeTest
from lrfast.range_test._sweep import Mode, Sweep, Vary, make_sweep
from lrfast.schedules import Schedule
from lrfast.suggest import Suggestion
from lrfast.training._captured import check_captures
from lrfast.training._data import (
    ComputeLoss,
    LossFunction,
    PlacedBatches,
    ReplayableLoader,
    StepFunction,
    make_compute_loss,
    num_batches,
)
from lrfast.training._random import reseed
from lrfast.training._ranks import ranks_of
from lrfast.training._snapshot import Snapshot, preserved, sizes
from lrfast.training._step import TrainerUpdate, Training

_log = logging.getLogger(__name__)

_MAX_SWEEPS = 4  # of an adaptive range test


@checked
def lr_find(
    model: nn.Module,
    optimizer: Optimizer,
    train_loader: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    compute_loss: ComputeLoss | None = None,
    step_fn: StepFunction | None = None,
    start_lr: float | Sequence[float] = 1e-7,
    end_lr: float | Sequence[float] = 10.0,
    num_iter: int = 100,
    mode: Mode = "exp",
    vary: Vary = "ratio",
    diverge_threshold: float | None = 4.0,
    beta: float = 0.98,
    lag: int = 0,
    gradient_accumulation_steps: int = 1,
    same_batch: bool = False,
    val_loader: Iterable[Any] | None = None,
    judge: Iterable[Any] | None = None,
    repeats: int = 1,
    adaptive: bool = False,
    verify: int = 0,
    schedule: Schedule | None = None,
    budget: int | timedelta | None = None,
    scaler: torch.amp.GradScaler | None = None,
    others: Sequence[object] = (),
    snapshot: Literal["device", "host"] = "device",
    process_group: dist.ProcessGroup | None = None,
    capture: bool = False,
    progress: bool = True,
) -> RangeTest:
    """Run a range test: train with growing learning rates, record the losses, restore everything.

    Training after a range test is, bit for bit, training without it, also if something raises in
    the middle: parameters, buffers, gradients, optimizer state, modes, random numbers, the order of
    a DataLoader, and all plain state that model, optimizer, data and ``others`` hold are as before.
    What cannot be restored, such as data that can be iterated only once, is named in ``notes``.

    With a model in DistributedDataParallel, or sharded by FSDP, every rank calls it alike: losses
    are averaged, all ranks stop at the same point, and each restores its own copy.

    Args:
        model: Module with trainable parameters; it is put into training mode if it is not.
        optimizer: Of lrfast or torch.optim, with parameters of the model; one whose ``step`` needs
            a closure gets one. One that Accelerate has prepared brings its GradScaler and its
            number of micro-batches; :func:`lrfast.integrations.accelerate.lr_find` also clips.
        train_loader: Batches; cycled if they are too few.
        loss_fn: ``loss_fn(model(inputs), targets)`` for batches ``(inputs, targets)``; of more
            entries than two all but the last are inputs.
        compute_loss: Instead of ``loss_fn``: ``compute_loss(model, batch)`` returns the loss. With
            neither, the model returns its loss: as it is, as ``.loss``, as ``["loss"]`` or first.
        step_fn: Instead of both: ``step_fn(batch)`` makes a whole training step, from zeroing
            gradients to ``optimizer.step()``, keeps the learning rates and returns the loss.
            Modules, optimizers and schedulers that it names are restored, too; what else it changes
            belongs in ``others``.

    Common args:
        start_lr: First learning rate, above 0; or one per param group.
        end_lr: Last learning rate, above ``start_lr``; or one per param group.
        num_iter: Points of the sweep, 2 or more. A point is an applied update.
        val_loader: Batches; a point's loss is then the mean over them after the update.
        gradient_accumulation_steps: Micro-batches per update; a point's loss is their mean.
        scaler: GradScaler; steps that it skips add no point.
        adaptive: Whether to sweep again, over the range that method "auto" proposes, if the curve
            does not support its suggestion; 4 sweeps at most.
        repeats: Sweeps, each with other data order and random numbers; the result is their median.
        verify: Steps, 2 or more, of the short one-cycle runs in which the suggested learning rate
            and its neighbours race from the present state on the same batches; 8 runs at most, and
            one with another seed for a winner beside a learning rate that diverged. The log says
            so before, and ``race.updates`` what it was. 0: no race, or with ``schedule`` runs of
            its length.
        progress: Whether to show steps, learning rate and smoothed loss, in a terminal or notebook.

    Advanced args:
        mode: "exp", equal ratios from point to point, or "linear", equal differences.
        vary: "ratio": all groups in their ratios, ``start_lr`` and ``end_lr`` being those of the
            trained group with the highest learning rate. "same": all groups at the same learning
            rate. A number: only that group, while the others hold their learning rates.
        diverge_threshold: The sweep ends when the smoothed loss exceeds ``diverge_threshold`` times
            the best (measured against the drop and the noise where the best is not above 0); None:
            never for that.
        beta: Decay of the EMA that smooths the losses, in [0, 1).
        lag: 0 pairs a learning rate with the loss just before its update, as all peers do; 1 with
            the loss just after it, at the cost of one forward pass.
        same_batch: Whether all updates see the first one's batches, which removes their noise.
        schedule: Schedule that training will have, and the runs of the race, stretched or shortened
            to ``verify`` steps; the longer they are, the less they favour what suits short ones.
            None: one-cycle.
        budget: Most updates of the race in all, those of two runs or more; or its time, a
            ``datetime.timedelta``, because a number of seconds looks like one of updates. A run
            begins only if it fits: by its updates, or by the pace of the run before, of the sweep
            at first (with ``val_loader`` or ``capture`` that tells nothing, and one run is made).
            None: 8 runs, and those with another seed.
        judge: Validation batches whose mean loss decides the race; ``val_loader`` by default;
            without either training batches that no run trains on: those that follow the runs', or a
            tenth of a pass that is shorter than a run.
        others: Objects with ``state_dict`` and ``load_state_dict`` to restore, too.
        snapshot: Memory of the copies that restore everything: "device" is the one that trains,
            "host" is for models that fill the device.
        process_group: The ranks that train together, if the model is neither in
            DistributedDataParallel nor sharded.
        capture: Whether a sweep's updates are captured in a CUDA graph, see :func:`lrfast.capture`;
            for lrfast optimizers and training losses. Races are not captured.

    Returns:
        Curve, suggestions and outcome.

    Raises:
        TypeError, ValueError: For bad arguments, data or losses; nothing has changed then.

    Example:
        >>> import torch, lrfast
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(model.parameters(), lr=0.1)
        >>> batches = [(torch.ones(4, 2), torch.ones(4, 1))]
        >>> result = lrfast.lr_find(
        ...     model, optimizer, batches, torch.nn.functional.mse_loss, progress=False
        ... )
        >>> result.suggestion.rule, len(result.losses) == len(result.lrs)
        ('auto', True)

    Reference:
        Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186.
    """
    began = time.perf_counter()
    if diverge_threshold is not None and not (
        math.isfinite(diverge_threshold) and diverge_threshold > 1
    ):
        raise ValueError(
            f"diverge_threshold must be None, or finite and above 1, got {diverge_threshold}"
        )
    if lag not in (0, 1):
        raise ValueError(f"lag must be 0 or 1, got {lag!r}")
    check_count("repeats", repeats)
    if not is_int(verify) or verify == 1 or verify < 0:
        raise ValueError(f"verify must be a whole number of steps, 2 or more, or 0, got {verify!r}")
    if schedule is not None:
        verify = verify or schedule.total_steps
        schedule = schedule.extend_to(verify)
    if budget is not None:
        _check_budget(budget, verify)
    check_count("gradient_accumulation_steps", gradient_accumulation_steps)
    given, optimizer = optimizer, inner_optimizer(optimizer)
    notes: tuple[str, ...] = ()
    if given is not optimizer and scaler is None:
        scaler = getattr(given, "scaler", None)
    if step_fn is None and (prepared := getattr(given, "gradient_state", None)) is not None:
        gradient_accumulation_steps, notes = _as_prepared(
            prepared.num_steps, gradient_accumulation_steps
        )
    if val_loader is not None and lag:
        raise ValueError("lag must be 0 with val_loader, whose losses come after their updates")
    if step_fn is not None and not isinstance(step_fn, TrainerUpdate):
        clashes = {
            "loss_fn": loss_fn is not None,
            "compute_loss": compute_loss is not None,
            "gradient_accumulation_steps": gradient_accumulation_steps > 1,
            "val_loader": val_loader is not None,
            "verify": verify > 0,
        }
        for name in (name for name, clash in clashes.items() if clash):
            raise ValueError(f"{name} must be left out with step_fn, which makes the whole step")
    sweep = make_sweep(model, optimizer, start_lr, end_lr, num_iter, mode, vary)
    training = Training(
        model,
        optimizer,
        ReplayableLoader(train_loader) if repeats > 1 or adaptive or verify else train_loader,
        make_compute_loss(loss_fn, compute_loss),
        step_fn,
        gradient_accumulation_steps,
        same_batch,
        val_loader,
        val_loader if judge is None else judge,
        scaler,
        ranks_of(model, process_group),
        captures=capture,
    )
    if capture:
        check_captures(training)
    if scaler is not None and training.takes_closure:
        raise ValueError("scaler must be left out for an optimizer that needs a closure")
    kept = [*others, *([] if scaler is None else [scaler])]
    placed = train_loader.loaders if isinstance(train_loader, PlacedBatches) else [train_loader]
    names = ["train_loader", *(f"train_loader[{place}]" for place in range(1, len(placed)))]
    loaders = dict(zip(names, placed, strict=True)) | {"val_loader": val_loader, "judge": judge}
    functions = [each for each in (loss_fn, compute_loss, step_fn) if each is not None]
    if snapshot not in ("device", "host"):
        raise ValueError(f"snapshot must be 'device' or 'host', got {snapshot!r}")
    with preserved(
        *(model, optimizer),
        others=kept,
        loaders=loaders,
        functions=functions,
        on_host=snapshot == "host",
        check=partial(_check_memory, where=snapshot),
    ) as saved:
        own_loaders = list(loaders.values())
        search = _Search(
            training, saved, own_loaders, beta, diverge_threshold, lag, repeats, progress
        )
        result = search.run(sweep, adaptive)
        if verify:
            result = search.add_race(result, verify, schedule, budget)
    result = replace(result, notes=(*notes, *result.notes, *saved.notes))
    for note in result.notes:
        _log.info(note)
    return replace(result, seconds=time.perf_counter() - began, snapshot_bytes=saved.nbytes)


@dataclass(frozen=True)
class _Search:
    """The sweeps of one call of ``lr_find``, within its snapshot."""

    training: Training
    saved: Snapshot
    loaders: Sequence[Any]
    beta: float
    diverge_threshold: float | None
    lag: int
    repeats: int
    progress: bool

    def run(self, sweep: Sweep, adaptive: bool) -> RangeTest:
        """Sweep as often as it takes."""
        weights = weight_stats(self.training.optimizer)
        result = self._run_sweep(sweep, weights)
        notes: list[str] = []
        for _ in range(_MAX_SWEEPS - 1 if adaptive else 0):
            answer = result.suggestions["auto"]
            if answer.next_range is None:
                break
            notes.append(f"swept again: {answer.reason}")
            self.saved.restore()
            result = self._run_sweep(_next_sweep(result.sweep, answer.next_range), weights)
        return replace(result, notes=(*notes, *result.notes))

    def _run_sweep(self, sweep: Sweep, weights: WeightStats) -> RangeTest:
        recordings, began = [], time.perf_counter()
        for repeat in range(self.repeats):
            if repeat:
                self.saved.restore()
                reseed(repeat, self.loaders)
            loop = SweepLoop(
                self.training, sweep, self.beta, self.diverge_threshold, self.lag, self.progress
            )
            recordings.append(_analysis.read(loop.run(), self.lag))
        prior = rate_prior(self.training.optimizer, sweep.reference, loop.data_size, weights)
        result = _analysis.summarise(sweep, recordings, self.beta, prior)
        seconds = (time.perf_counter() - began) / self.repeats
        return replace(result, notes=self._notes(result), seconds=seconds)

    def add_race(
        self,
        result: RangeTest,
        steps: int,
        schedule: Schedule | None,
        budget: int | timedelta | None,
    ) -> RangeTest:
        """Return the result with the winner of a race, as rule "verified"."""
        first = _first_candidate(result)
        outcome, verdict = None, replace(first, rule="verified")
        if first.lr is not None:
            training = self.training
            # A sweep's point is an update like those of the race, unless it validates, too.
            is_alike = training.val_loader is None and not training.captures and len(result.lrs)
            pace = result.seconds / len(result.lrs) if is_alike else None
            plan = RacePlan(
                steps, schedule or one_cycle_for(training.optimizer, steps), budget, pace
            )
            outcome, verdict = race(training, result.sweep, self.saved, first, plan, self.progress)
        suggestions = MappingProxyType({**result.suggestions, "verified": verdict})
        return replace(result, suggestions=suggestions, race=outcome)

    def _notes(self, result: RangeTest) -> tuple[str, ...]:
        notes = []
        if len(result.losses) and not math.isfinite(result.losses[-1]):
            place = f"point {len(result.losses)}, at lr {result.lrs[-1]:.1e}"
            notes.append(f"the loss is {result.losses[-1]} at {place}")
        batches = num_batches(self.training.train_loader)
        used = self.training.gradient_accumulation_steps * len(result.lrs)
        if not (batches is None or batches >= used or self.training.same_batch):
            notes.append(f"the loader's {batches} batches were cycled for {len(result.lrs)} steps")
        return tuple(notes)


def _check_budget(budget: object, verify: int) -> None:
    """Refuse a budget that is neither a time nor the updates of two runs."""
    if not verify:
        raise ValueError(f"budget must be None without verify, got {budget!r}")
    is_enough = is_int(budget) and budget >= 2 * verify
    if is_enough or (isinstance(budget, timedelta) and budget > timedelta(0)):
        return
    hint = f"; for seconds pass datetime.timedelta(seconds={budget!r})"
    raise ValueError(
        f"budget must be {2 * verify} or more, two runs of the race, or a timedelta above 0, got "
        f"{budget!r}{hint if isinstance(budget, float) else ''}"
    )


def _as_prepared(prepared: int, given: int) -> tuple[int, tuple[str, ...]]:
    """Return an update's micro-batches under Accelerate, and notes; what is given wins over 1."""
    notes = [
        "clip_grad_norm_ is left out of the sweep, unless an lrfast optimizer has max_grad_norm; "
        "lrfast.integrations.accelerate.lr_find(max_grad_norm=...) calls it"
    ]
    if not given == 1 < prepared:
        return given, tuple(notes)
    notes.append(f"gradient_accumulation_steps is {prepared}, as the Accelerator has it")
    return prepared, tuple(notes)


def _next_sweep(sweep: Sweep, wanted: tuple[float, float]) -> Sweep:
    """The sweep over the wanted range, with more points if that is the present one."""
    start, end = sweep.ranges[sweep.reference]
    if math.isclose(wanted[0], start) and math.isclose(wanted[1], end):
        return replace(sweep, num_iter=3 * sweep.num_iter)
    firsts, lasts = (sweep.rates_at(rate) for rate in wanted)
    return replace(sweep, ranges=tuple(zip(firsts, lasts, strict=True)))


def _first_candidate(result: RangeTest) -> Suggestion:
    """The suggestion of "auto", or the median of all: that of one method may be far off."""
    auto = result.suggestions["auto"]
    answers = [(answer.lr, answer) for answer in result.suggestions.values() if answer.lr]
    if auto.lr is not None or not answers:
        return auto
    return sorted(answers, key=lambda pair: pair[0])[(len(answers) - 1) // 2][1]


def _check_memory(needed: dict[torch.device, int], where: str) -> None:
    """Log the size of the snapshot; MemoryError, before it starts, if a device has less left."""
    _log.info("the snapshot copies %s to %s memory", sizes(needed), where)
    for device, size in needed.items():
        if device.type != "cuda" or where == "host":
            continue
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        if size > free:
            raise MemoryError(
                f"the snapshot needs {size} bytes of {device}, which has {free} left; "
                "pass snapshot='host'"
            )
