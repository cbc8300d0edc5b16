"""lrfast under PyTorch-Ignite; needs ``ignite``. Its optimizers work in any engine as they are."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrfast import range_test
from lrfast._utils.arguments import checked
from lrfast._utils.optional import importing
from lrfast._utils.wrapped_optimizers import inner_optimizer
from lrfast.integrations._shared import (
    KeptObjects,
    LRFinderBase,
    check_measures_nothing,
    check_own_updates,
    mean_loss,
)
from lrfast.training._step import TrainerUpdate

with importing("lrfast.integrations.ignite needs ignite", "ignite", extra="ignite"):
    from ignite.engine import Engine, Events
    from ignite.handlers.param_scheduler import (
        ParamGroupScheduler,
        ParamScheduler,
        ReduceLROnPlateauScheduler,
    )

__all__ = ["LRFindHandler"]


class LRFindHandler(LRFinderBase):
    """Runs a range test when an engine starts, and trains on at the suggested learning rate.

    The engine's own process function makes the updates. It finds the engine's iteration, epoch and
    batch as in training, and the events that it fires are handled; handlers of the engine's own
    events do not run, and ``notes`` of the result name them. An output of None adds no point.
    Weights, states, the engine's state, order of data and random numbers are restored. Without a
    suggestion the learning rates stay. ``results`` holds all range tests.

    Args:
        model: Module that the engine trains.
        optimizer: Its optimizer, of lrfast or torch.
        output_transform: Maps the process function's output to the loss, a tensor on the device or
            a number; default: the output itself. ``create_supervised_trainer`` returns
            ``loss.item()``, a synchronisation per step, unless its own ``output_transform`` is
            ``lambda x, y, y_pred, loss: loss``.
        rule: Name of the suggestion method; None, the default: that of :attr:`RangeTest.rule`.
        **options: Arguments of :func:`lrfast.lr_find` that go with a ``step_fn``, and
            ``gradient_accumulation_steps``, calls of the process function per update; by default
            those of a ``create_supervised_trainer``. Modules, optimizers, schedulers and
            GradScalers that the process function names are restored; what else it changes belongs
            in ``others``.

    Example:
        >>> import torch, lrfast
        >>> from ignite.engine import create_supervised_trainer
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(model.parameters(), lr=0.1)
        >>> trainer = create_supervised_trainer(
        ...     model, optimizer, torch.nn.functional.mse_loss,
        ...     output_transform=lambda x, y, y_pred, loss: loss,
        ... )
        >>> finder = LRFindHandler(model, optimizer, progress=False).attach(trainer)
        >>> state = trainer.run([(torch.ones(4, 2), torch.full((4, 1), 5.0))], max_epochs=1)
        >>> len(finder.results)
        1
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        output_transform: Callable[[Any], Tensor] = lambda output: output,
        rule: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(rule)
        check_own_updates(options)
        self._model, self._optimizer = model, optimizer
        self._loss_of, self._options = output_transform, options
        self._logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> LRFindHandler:
        """Return itself, after registering for the engine's start."""
        engine.add_event_handler(Events.STARTED, self)
        return self

    def __call__(self, engine: Engine) -> None:
        """Run a range test on the engine's data, and apply it.

        Raises:
            ValueError: If a handler would overwrite the learning rate that is found.
        """
        optimizer = inner_optimizer(self._optimizer)
        _check_schedulers(engine, optimizer)
        held = _named_in(engine._process_function)
        options = {
            "gradient_accumulation_steps": held.get("gradient_accumulation_steps", 1)
        } | self._options
        kinds = nn.Module | Optimizer | LRScheduler | torch.amp.GradScaler
        trained = (self._model, self._optimizer, optimizer)
        others = [v for v in held.values() if isinstance(v, kinds) and v not in trained]
        kept = KeptObjects([engine, engine.state], apart=("dataloader", "batch"))
        options["others"] = [*options.get("others", ()), *others, kept]
        step = _EngineStep(engine, self._loss_of)
        data = engine.state.dataloader
        result = range_test.lr_find(
            self._model,
            optimizer,
            repeat(None) if data is None else data,
            **_with_step(step, **options),
        )
        notes = [f"{name} did not run in the range test" for name in _handlers_left_out(engine)]
        self._logger = engine.logger
        self._take(replace(result, notes=(*result.notes, *notes)), optimizer, held.values())

    def _announce(self, text: str) -> None:
        self._logger.info("LRFindHandler: %s", text)


class _EngineStep:
    """The engine's own step, with its counters as in training."""

    def __init__(self, engine: Engine, loss_of: Callable[[Any], Any]) -> None:
        self._engine, self._loss_of = engine, loss_of

    def update(self, batches: Iterable[Any]) -> Tensor:
        """Step through the micro-batches of an update, and return the mean of their losses."""
        return mean_loss(map(self._step, batches))

    def __call__(self, batch: Any) -> Tensor:
        """Step through one batch, and return its loss."""
        return self.update([batch])

    def _step(self, batch: Any) -> Any:
        engine, state = self._engine, self._engine.state
        if state.iteration % (state.epoch_length or 2**63) == 0:
            state.epoch += 1
        state.iteration += 1
        state.batch = batch
        state.output = engine._process_function(engine, batch)
        loss = None if state.output is None else self._loss_of(state.output)
        return torch.tensor(float(loss)) if isinstance(loss, float | int) else loss


def _with_step(step: _EngineStep, **options: Any) -> dict[str, Any]:
    """Options of ``lr_find`` for a step of one or several calls per update."""
    if options["gradient_accumulation_steps"] == 1:
        return {"step_fn": step} | options
    check_measures_nothing(options, "with a process function that accumulates")
    return {"step_fn": TrainerUpdate(lambda: None, step.update)} | options


def _check_schedulers(engine: Engine, optimizer: Optimizer) -> None:
    """Refuse a handler that sets the optimizer's learning rate."""
    for _, handler in _handlers_of(engine):
        if _sets_rate(handler, optimizer):
            raise ValueError(
                "the engine must have no handler that sets the learning rate for a range test, got "
                f"{type(handler).__name__}, which would overwrite what is found; find it first, "
                "and make the scheduler from it, or give the optimizer a schedule of lrfast, which "
                "multiplies it"
            )


def _sets_rate(handler: Any, optimizer: Optimizer) -> bool:
    if isinstance(handler, ParamGroupScheduler):
        return any(_sets_rate(each, optimizer) for each in handler.schedulers)
    # Of ReduceLROnPlateau the present learning rate is a factor.
    is_kind = isinstance(handler, ParamScheduler)
    if not is_kind or isinstance(handler, ReduceLROnPlateauScheduler):
        return False
    return handler.param_name == "lr" and inner_optimizer(handler.optimizer) is optimizer


def _handlers_of(engine: Engine) -> list[tuple[Any, Any]]:
    """Every event's handlers, also of filtered events."""
    return [
        (event, handler._parent() if hasattr(handler, "_parent") else handler)
        for event, handlers in engine._event_handlers.items()
        for handler, _, _ in handlers
    ]


# What happens between two updates.
_BETWEEN = frozenset(
    {
        *(Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED, Events.EPOCH_STARTED),
        *(Events.ITERATION_STARTED, Events.ITERATION_COMPLETED),
    }
)


def _handlers_left_out(engine: Engine) -> list[str]:
    """Names of handlers that training runs between updates, without ignite's own."""
    return [
        f"{getattr(handler, '__name__', type(handler).__name__)}, a handler of {event.name},"
        for event, handler in _handlers_of(engine)
        if event in _BETWEEN and not _is_watching(handler)
    ]


def _is_watching(handler: Any) -> bool:
    owner = getattr(handler, "__self__", handler)
    module = getattr(handler if inspect.isfunction(handler) else type(owner), "__module__", "")
    return isinstance(owner, LRFindHandler) or str(module).startswith("ignite.")


def _named_in(function: Callable[..., Any]) -> dict[str, Any]:
    """What a process function closes over, and the globals that it names."""
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        return {}
    found = inspect.getclosurevars(function)
    return {**found.globals, **found.nonlocals}
