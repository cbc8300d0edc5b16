"""The fine-tuner as users hold it: stages, and what lets them survive an interruption."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrfast.finetune import _checkpoint
from lrfast.finetune._fits import Fits
from lrfast.finetune._history import Stage
from lrfast.finetune._recipe._plan import Numbers, Top
from lrfast.finetune._recipe._recipe import Recipe
from lrfast.finetune._setup import check_trains, check_whole, group_schedules
from lrfast.finetune._stage_state import Run
from lrfast.schedules import Schedule


class FineTuner(Fits):
    """Fine-tunes a pretrained model, layer group by layer group.

    Args:
        model: The model, on the device that trains.
        train: Sized loader of batches ``(inputs, targets)``; of more entries than two all but the
            last are inputs.
        valid: Loader of validation batches, or None.
        loss_fn: ``loss_fn(outputs, targets)``, a mean over the batch.
        compute_loss: Instead of it: ``compute_loss(model, batch)`` returns the loss. With neither,
            the model returns its loss: as it is, as ``.loss``, as ``["loss"]`` or first.
        optimizer: Called with param groups; an optimizer class of ours or of torch.optim, or a
            function such as ``functools.partial(lrfast.SGD, momentum=0.9)``.
        metrics: Functions ``(outputs, targets) -> scalar tensor``, means over the batch, by name;
            they need ``loss_fn``.
        groups: Explicit layer groups as :func:`lrfast.layer_groups` takes them.
        weight_decay: Of all groups; None leaves it to the optimizer.
        no_decay: Parameters without weight decay, as :func:`lrfast.discriminative` takes them: True
            for those of normalisation layers, biases and vectors, or a list of patterns. A layer
            group may then make several param groups, each with a column in the history.
        norm_mode: What normalisation layers with running statistics do in frozen layer groups, see
            :func:`lrfast.set_norm_mode`: "train" moves the statistics, "keep" keeps and uses
            them, "adapt" trains the layers too.
        amp: torch.bfloat16 or torch.float16: the type of forward passes under autocast. float16
            scales losses, and skips steps whose gradients are not finite; a skipped step counts
            neither in the schedule nor in the history. None: no autocast.
        accumulate: Batches per update, 1 or more. The last update of an epoch takes what is left;
            an update's loss is the mean over its batches.
        max_grad_norm: Norm that gradients are clipped to; None: as the optimizer was made.
        ema_decay: Decay, in [0, 1), of an average of the weights, kept by an optimizer of ours;
            None: as the optimizer was made.
        validate_ema: Whether validation, and the best model, take the averaged weights where there
            are any; buffers, such as those of batch norm, are not averaged.
        keep_best: "valid_loss" or the name of a metric: the model that was best by that is kept on
            the device, for :meth:`restore_best`. None: none is.
        best_mode: Whether the lowest ("min") or the highest ("max") is the best; None: the lowest
            loss, the highest metric.
        callbacks: What is called on the way, in this order, see :class:`Callback`.
        capture: Whether updates, and those of range tests, run as a CUDA graph, see
            :func:`lrfast.capture`; with an optimizer of ours. An epoch's last batch, where it is a
            smaller one, runs eagerly.
        progress: Whether to show steps, rate and smoothed loss, in a terminal or a notebook.

    Attributes:
        history: All stages so far, a :class:`lrfast.History`.
        optimizer: Whose param groups are the layer groups, or parts of them.
        groups: The :class:`lrfast.groups.LayerGroups`, from body to head.
        callbacks: Those that are called, a list that may be changed.

    Raises:
        ValueError: If an argument is out of range, the model has no parameters or ``train`` has no
            batch.
        TypeError: If ``train`` has no length.

    Example:
        >>> import torch, lrfast
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(),
        ...                             torch.nn.Linear(4, 2))
        >>> batch = (torch.randn(8, 2), torch.randint(2, (8,)))
        >>> tuner = lrfast.FineTuner(model, [batch] * 10, [batch], progress=False,
        ...                          loss_fn=torch.nn.functional.cross_entropy)
        >>> tuner.freeze()
        >>> stage = tuner.fit_one_cycle(1, max_lr=1e-2)
        >>> tuner.unfreeze()
        >>> stage = tuner.fit_one_cycle(2, max_lr=slice(1e-4, 1e-2))
        >>> [stage.name for stage in tuner.history.stages]
        ['one-cycle', 'one-cycle']
    """

    def recipe(
        self,
        epochs: tuple[int, int] = (2, 4),
        *,
        top: Top = "before",
        head_drop: float = 10.0,
        spread: float = 3.0,
        feature_epochs: int = 0,
        plain: Iterable[Any] | None = None,
        cycle_mult: float | None = None,
    ) -> Recipe:
        """Return a plan: the head, then all layers, at rates that range tests find.

        Nothing runs before the plan does. Print it to see its stages, its ``report()`` to see what
        became of them.

        Args:
            epochs: Of the head alone and of all layers, 1 or more each.
            top: Where the head's rate in the second stage comes from: "before", a range test on all
                layers before anything trains; "head", its rate in the first stage over
                ``head_drop``, within what a range test on all layers after that stage allows.
            head_drop: 1 or more; for ``top="head"``.
            spread: The head's rate over the first layer group's in the second stage, 1 or more.
            feature_epochs: Epochs of the head, before all others, on features that the frozen body
                computes once; the model must be an nn.Sequential, see :meth:`fit`.
            plain: Training data without augmentation for these epochs; None: the tuner's.
            cycle_mult: None: each stage is one cycle. 1 or more: warm restarts, each ``cycle_mult``
                times as long as the one before, until validation gets worse from cycle to cycle;
                ``epochs[1]`` holds whole cycles, such as 7 = 1 + 2 + 4. The head's last one epoch.

        Returns:
            The plan.

        Raises:
            TypeError, ValueError: If an argument is out of range or does not fit, or there is one
                layer group only.

        Example:
            >>> import torch, lrfast
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(),
            ...                             torch.nn.Linear(4, 2))
            >>> batch = (torch.randn(8, 2), torch.randint(2, (8,)))
            >>> tuner = lrfast.FineTuner(model, [batch] * 10, [batch], progress=False,
            ...                          loss_fn=torch.nn.functional.cross_entropy)
            >>> plan = tuner.recipe(epochs=(1, 3))
            >>> [(stage.name, stage.steps) for stage in plan.stages]
            [('head', 10), ('all layers', 30)]

        Reference:
            Howard & Ruder, arXiv:1801.06146.
        """
        numbers = Numbers(epochs, top, head_drop, spread, feature_epochs, plain, cycle_mult)
        return Recipe(self, numbers)

    def resume(
        self,
        epochs: int | None = None,
        schedule: Schedule | Sequence[Schedule] | None = None,
    ) -> Stage:
        """Go on with the stage that was interrupted, or that :meth:`load` brought.

        The whole stage is then, bit for bit, what it would have been without the interruption, as
        far as the device computes the same twice and data are drawn from generators that torch
        knows of, or from Python's and numpy's global ones; random numbers within workers that
        persist over epochs start anew.

        Args:
            epochs: Epochs of the whole stage, if others than planned; more than are done. Then
                ``schedule`` must say how the rates go on.
            schedule: Schedule of the whole stage, whose values from the step of the interruption on
                are used; without ``epochs`` it must be the planned one.

        Returns:
            What happened in the whole stage; in :attr:`history` it replaces the interrupted one.

        Raises:
            ValueError: If there is no interrupted stage, or an argument does not fit it.
        """
        if self._interrupted is None:
            raise ValueError("resume needs an interrupted stage, got none; call load(path) first")
        run = self._interrupted
        if run.epoch_steps != self.epoch_steps:
            raise ValueError(
                f"train must have {run.epoch_steps} steps per epoch as when the stage began, "
                f"got {self.epoch_steps}"
            )
        schedules = run.schedules
        if schedule is not None:
            schedules = group_schedules(self.optimizer, schedule, len(self.groups))
        if epochs is not None:
            _check_end(run, epochs, is_planned=schedule is None)
        elif schedules != run.schedules:
            names = ", ".join(each.name for each in schedules)
            raise ValueError(
                "schedule must be the interrupted stage's, or come with epochs=, got another: "
                f"{names}"
            )
        run = replace(run, epochs=epochs or run.epochs, schedules=schedules)
        moment = run.moment
        assert moment is not None
        check_trains(self.optimizer)
        moment.put_back(self.model, self.loaders)
        self.history.stages[:] = self.finished_stages()
        return self._train(run.resumed())

    def save(self, path: str | Path) -> None:
        """Write all that a tuner of the same kind needs to go on; waits for the device.

        Between stages, from a callback and after an interruption. The file holds model, optimizer
        with schedule, scaler, averages, best model, what is frozen, history, callbacks, random
        states and the place in the data; it is written whole or not at all.

        Args:
            path: The file; one that is there is replaced. A process that is killed while it writes
                leaves a ``.name.*.tmp`` beside it, and the old file as it was.
        """
        run, driver = self._interrupted, None
        if self._loop is not None:
            run, driver = self._loop.now(self.model), self._loop.driver
        _checkpoint.write(path, _checkpoint.pack(self, run, driver))

    def load(self, path: str | Path) -> None:
        """Take over what :meth:`save` wrote; :meth:`resume` then goes on with its stage.

        Args:
            path: The file. Nothing in it is executed.

        Raises:
            ValueError: If it was saved by a tuner with other groups, optimizer or options, or is
                broken; nothing has changed then.
            MemoryError: If there is no memory for a copy of what there is, which the host keeps
                until all is loaded.
        """
        if self._loop is not None:
            raise ValueError("load must wait until the stage has ended, got a call while it runs")
        self._interrupted = _checkpoint.unpack(self, _checkpoint.read(path))
        self._partial = None

    def finished_stages(self) -> list[Stage]:
        """Return the history without the stage that can still go on."""
        return [stage for stage in self.history.stages if stage is not self._partial]


def _check_end(run: Run, epochs: int, is_planned: bool) -> None:
    """Check another number of epochs."""
    done = run.epoch + (run.used > 0)
    if check_whole("epochs", epochs) < done:
        raise ValueError(f"epochs must be {done} or more, which have begun, got {epochs}")
    if is_planned and epochs != run.epochs:
        raise ValueError(
            f"schedule must be given for {epochs} epochs instead of {run.epochs}, got None"
        )
