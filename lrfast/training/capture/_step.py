"""A whole training step as one CUDA graph: ``lrfast.capture``.

A graph holds addresses and launch arguments by value. The engine keeps everything that a user may
change in tables that stay where they are (csrc/bindings/recording.cpp); what a graph cannot
follow is found before each replay. On the CPU the same object runs the step eagerly, with the same
checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lrfast.curve import LossCurve
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.training._snapshot import GlobalRandom
from lrfast.training.capture._rollback import Untouched
from lrfast.training.capture._spec import Parts, TrainStep
from lrfast.training.capture._static_batch import OtherBatch, StaticBatch

if TYPE_CHECKING:
    from lrfast import _C

_mode = attrgetter("training")


class RecaptureNeeded(RuntimeError):
    """A captured training step cannot follow a change; the message names it."""


def capture(
    train_step: TrainStep,
    optimizer: FusedOptimizer,
    example_batch: Any,
    *,
    curve: LossCurve | None = None,
    scaler: torch.amp.GradScaler | None = None,
    others: Sequence[object] = (),
    generators: Sequence[torch.Generator] = (),
    warmup: int = 3,
    recapture: Literal["error", "auto"] = "error",
) -> CapturedStep:
    """Capture a whole training step in one CUDA graph, to be replayed for later batches.

    ``train_step(batch)`` does what a step of the training loop does: zeroing, forward, backward,
    ``optimizer.step()`` once (or a scaler's), and returns the loss. It must neither read a value
    back from the device nor depend on one. It runs ``warmup`` times and is then recorded, none of
    which leaves a trace in parameters, gradients, buffers, optimizer, scaler, curve or random
    numbers; gradients that are None before and not after a step become zeros.

    The first call of what is returned is the first step that counts. On the CPU calls run
    ``train_step`` eagerly, with the same checks.

    Args:
        train_step: Called with a batch of the example's kind; returns a scalar.
        optimizer: One of ours, with all parameters on one device.
        example_batch: A tensor, or nested dicts, lists and tuples of tensors. Its tensors are
            copied to the optimizer's device; so are those of later batches.
        curve: Records each step's loss, with the rates that the step used where none are planned;
            while its flag is set, the optimizer changes nothing. A step that was skipped adds no
            point where there is a ``scaler`` or the optimizer skips by itself.
        scaler: The GradScaler that ``train_step`` uses.
        others: What else ``train_step`` changes: tensors, and objects with ``state_dict`` and
            ``load_state_dict``. The modules that it calls are found by themselves.
        generators: Of random numbers on the GPU, besides torch's own.
        warmup: Steps before the recording, 1 or more.
        recapture: What to do on a change that a graph cannot follow: "error" raises
            :class:`RecaptureNeeded`; "auto" captures again. There a batch of another kind runs
            eagerly, such as the last one of an epoch; the second of a kind in a row is captured.

    Returns:
        The captured step.

    Raises:
        TypeError, ValueError: If an argument is not of that kind, or ``train_step`` does not step
            the optimizer once.

    Example:
        >>> import torch, lrfast
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.AdamW(model.parameters(), lr=0.01, zero_grads=True)
        >>> def train_step(batch):
        ...     loss = (model(batch[0]) - batch[1]).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss
        >>> batches = [(torch.randn(8, 2), torch.randn(8, 1)) for _ in range(3)]
        >>> with lrfast.capture(train_step, optimizer, batches[0]) as step:
        ...     losses = [step(batch).clone() for batch in batches]
        >>> len(losses), step.captures
        (3, 1)
    """
    parts = Parts(train_step, optimizer, curve, scaler, list(others), list(generators), warmup)
    if recapture not in ("error", "auto"):
        raise ValueError(f"recapture must be 'error' or 'auto', got {recapture!r}")
    step = CapturedStep(parts, recapture)
    step._capture(example_batch)
    return step


class CapturedStep:
    """A training step that :func:`capture` has captured; call it with a batch.

    Rates, weight decay and other hyperparameters, what is frozen, schedules of any length,
    :class:`lrfast.Plateau`, ``max_grad_norm`` where gradients are clipped already and the curve's
    flag act on the next call, without a new capture.
    """

    def __init__(self, parts: Parts, recapture: Literal["error", "auto"]) -> None:
        self._parts = parts
        self._recaptures = recapture == "auto"
        self._engine: _C.Engine | None = None  # None: nothing is captured
        self._recording = 0  # its number with the engine
        self._graph: torch.cuda.CUDAGraph | None = None
        self._odd: StaticBatch | None = None  # of another kind, as the call before had it
        self._is_released = False
        self._captures = 0
        self._flag: Tensor | None = None  # the curve's

    @property
    def captures(self) -> int:
        """How often the step was captured."""
        return self._captures

    def __call__(self, batch: Any) -> Tensor:
        """Make one training step; does not wait for the device.

        Args:
            batch: Of the example's kind.

        Returns:
            The loss: the same tensor from one capture to the next, which each call overwrites.

        Raises:
            RecaptureNeeded: For a change that a graph cannot follow, unless it may recapture.
            IndexError: If the curve is full.
            RuntimeError: After :meth:`release`.
        """
        if self._is_released:
            raise RuntimeError("the captured step was released; call lrfast.capture again")
        if self._parts.curve is not None:
            self._parts.curve._check_room(self._parts.may_skip)
        change = self._change()
        if change is not None:
            self._capture_again(batch, change)
        try:
            self._batch.copy_in(batch)
        except OtherBatch as other:
            if self._runs_eagerly(batch, f"batch{other}"):
                return self._finish(self._run_beside(batch))
        self._odd = None
        if self._graph is None:
            return self._finish(self._parts.run(self._batch.value))
        self._graph.replay()
        return self._finish(None)

    def release(self) -> None:
        """Let the graph and its memory go; the optimizer and its gradients stay as they are."""
        if self._is_released:
            return
        self._drop()
        self._is_released = True
        if self._flag is not None:
            self._parts.optimizer._watch(None)

    def __enter__(self) -> CapturedStep:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _drop(self) -> None:
        if self._engine is not None:
            self._engine.forget_recording(self._recording)
        if self._graph is not None:
            self._graph.reset()
        self._engine = self._graph = None
        if self._parts.optimizer._captured_by is self:
            self._parts.optimizer._captured_by = None

    def _change(self) -> str | None:
        """Bring the engine's tables up to date; return what a graph cannot follow."""
        parts, optimizer, engine = self._parts, self._parts.optimizer, self._engine
        if engine is None:
            return "the last capture has failed"
        if optimizer._engine is not engine:
            return "the optimizer's state was loaded or restored"
        if list(map(_mode, self._modules)) != self._modes:
            return "modules have changed between training and evaluation mode"
        if parts.baked() != self._baked:
            return "the scaler's factors or interval have changed"
        if self._flag is not None:
            engine.watch(self._flag)
        held = self._recording, optimizer.param_groups, optimizer.state
        found = engine.refresh(*held)
        if isinstance(found, list):
            optimizer._prepare_states(engine, found)
            found = engine.refresh(*held)
        if isinstance(found, list):
            raise RuntimeError(f"{len(found)} parameters have no usable optimizer state")
        return found

    def _capture_again(self, batch: Any, change: str) -> None:
        if not self._recaptures:
            raise RecaptureNeeded(
                f"the captured training step cannot follow this change: {change}; undo it, call "
                'lrfast.capture again, or pass recapture="auto"'
            )
        self._capture(batch)

    def _runs_eagerly(self, batch: Any, change: str) -> bool:
        """Whether a batch of another kind is the first of its kind; captures it where not."""
        if self._recaptures:
            try:
                if self._odd is None:
                    raise OtherBatch
                self._odd.copy_in(batch)
            except OtherBatch:
                self._odd = StaticBatch(batch, self._parts.device)
                return True
        self._capture_again(batch, change)
        return False

    def _run_beside(self, batch: Any) -> Tensor:
        """Make an eager step, and leave the gradients that the graph knows in their places."""
        assert self._odd is not None
        gradients = [(param, param.grad) for param in self._parts.parameters()]
        loss = self._parts.run(self._odd.value)
        for param, grad in gradients:
            param.grad = grad
        return loss

    def _finish(self, loss: Tensor | None) -> Tensor:
        """Note what an eager step, or None for a replay, has left."""
        if loss is not None:
            self._loss.copy_(loss.reshape(self._loss.shape))
            assert self._engine is not None
            self._engine.mark_gradients(self._recording)
        if self._parts.curve is not None:
            self._parts.curve._count(self._parts.may_skip)
        return self._loss

    def _capture(self, batch: Any) -> None:
        """Warm up, put everything back, and record."""
        parts, optimizer = self._parts, self._parts.optimizer
        parts.check()  # groups may have been added since
        self._drop()
        self._flag = None if parts.curve is None else parts.curve.stop_flag
        self._batch = StaticBatch(batch, parts.device)
        engine = optimizer._engine or optimizer._make_engine()
        if self._flag is not None:
            engine.watch(self._flag)
        engine.build(optimizer.param_groups)
        if parts.scaler is not None:
            parts.scaler.scale(torch.zeros((), device=parts.device))  # makes its tensors, once
        untouched = self._warm_up(engine)
        self._engine, self._baked, self._odd = engine, parts.baked(), None
        self._modules = untouched.modules
        self._modes = list(map(_mode, self._modules))
        change = self._change()  # makes the states that the warm-up showed to be needed
        if change is None and parts.device.type == "cuda":
            self._record(engine, untouched)
        if change is not None:
            self._engine = None
            raise ValueError(f"train_step must not change what it is captured with: {change}")
        optimizer._captured_by = self
        self._captures += 1

    def _warm_up(self, engine: _C.Engine) -> Untouched:
        """Make some steps on a side stream and undo them, but for the fact of gradients."""
        parts = self._parts
        untouched = Untouched(
            parts.optimizer,
            [*parts.others, *([] if parts.scaler is None else [parts.scaler])],
            parts.generators,
        )
        parameters = parts.parameters()
        given: set[int] = set()
        try:
            with untouched.watching(), _side_stream(parts.device):
                for number in range(parts.warmup):
                    if number == parts.warmup - 1:
                        self._recording = engine.begin_recording()
                    loss = parts.run(self._batch.value, records=False)
                engine.end_recording()
            given = {id(param) for param in parameters if param.grad is not None}
        except BaseException:
            engine.forget_recording(self._recording)
            raise
        finally:
            untouched.restore()
        for param in parameters:
            if id(param) in given and param.grad is None:
                param.grad = torch.zeros_like(param)
        engine.mark_gradients(self._recording)
        self._loss = torch.zeros_like(loss)
        return untouched

    def _record(self, engine: _C.Engine, untouched: Untouched) -> None:
        random = replace(GlobalRandom.take(), cuda=[])  # a graph's registered ones stay
        graph = torch.cuda.CUDAGraph()
        for generator in self._parts.generators:
            graph.register_generator_state(generator)
        self._recording = engine.begin_recording()
        try:
            # Other threads, such as a loader's that pins memory, may go on.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._loss = self._parts.run(self._batch.value)
            engine.end_recording()
        except BaseException:
            engine.forget_recording(self._recording)
            self._engine = None
            untouched.restore()
            raise
        finally:
            random.put_back()
        self._graph = graph


def _side_stream(device: torch.device) -> AbstractContextManager[None]:
    """A stream of its own for the warm-up, before and after all others; nothing on the CPU."""
    return nullcontext() if device.type != "cuda" else _SideStream(device)


class _SideStream(AbstractContextManager[None]):
    def __init__(self, device: torch.device) -> None:
        self._main = torch.cuda.current_stream(device)
        self._side = torch.cuda.Stream(device)
        self._inside = torch.cuda.stream(self._side)

    def __enter__(self) -> None:
        self._side.wait_stream(self._main)
        self._inside.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inside.__exit__(*error)
        self._main.wait_stream(self._side)
