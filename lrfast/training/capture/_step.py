"""Capture of a whole training step in one CUDA graph: ``lrfast.capture``.

A graph holds addresses and launch arguments by value. The engine keeps everything that a user may
change in tables that stay in place (csrc/bindings/recording.cpp); a change that a graph cannot
follow is found before each replay. On the CPU the same object runs the step eagerly, with the same
checks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lrfast._utils.arguments import checked
from lrfast._utils.async_copy import note_use
from lrfast.curve import LossCurve
from lrfast.optim._optimizer import FusedOptimizer
from lrfast.training._data import StepFunction, tensors_in
from lrfast.training._snapshot import GlobalRandom, Snapshot, Stateful
from lrfast.training.capture._spec import CaptureSpec
from lrfast.training.capture._static_batch import BatchMismatch, copy_in, make_static

if TYPE_CHECKING:
    from lrfast._C import Engine

_mode = attrgetter("training")


class RecaptureNeeded(RuntimeError):
    """A captured training step cannot follow a change; the message names it."""


@checked
def capture(
    train_step: StepFunction,
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
    back from the device nor depend on one. Warm-up and recording leave no trace in parameters,
    gradients, buffers, optimizer, scaler, curve or random numbers; gradients that are None before
    and not after a step become zeros. A step that sets gradients to None at its end must find none.
    On a GPU no loss or output of an earlier step may be held
    meanwhile, unless it is detached. On the CPU calls run ``train_step`` eagerly, with the same
    checks.

    Args:
        train_step: Called with a batch of the example's kind; returns a scalar.
        optimizer: An lrfast optimizer, with all parameters on one device.
        example_batch: A tensor, or nested dicts, lists and tuples of tensors. Its tensors are
            copied to the optimizer's device; so are those of later batches.
        curve: Records each step's loss, with the learning rates that the step used if none are
            planned; while its flag is set, the optimizer changes nothing. A step that was skipped
            adds no point if there is a ``scaler`` or the optimizer skips by itself.
        scaler: The GradScaler that ``train_step`` uses.
        others: Else changed by ``train_step``: tensors, and objects with ``state_dict`` and
            ``load_state_dict``. The modules that it calls are found by themselves.
        generators: Of random numbers on the GPU, besides torch's own.
        warmup: Steps before the recording, 1 or more.
        recapture: On a change that a graph cannot follow, "error" raises
            :class:`RecaptureNeeded`; "auto" captures again. With "auto" a batch of another kind,
            such as the last one of an epoch, runs eagerly; the second of a kind in a row is
            captured.

    Returns:
        The captured step, whose first call is the first step that counts.

    Raises:
        TypeError, ValueError: If an argument is not of that kind, or ``train_step`` does not step
            the optimizer once.
        RuntimeError: If CUDA refuses to capture ``train_step``.

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
    spec = CaptureSpec(train_step, optimizer, curve, scaler, list(others), list(generators), warmup)
    if recapture not in ("error", "auto"):
        raise ValueError(f"recapture must be 'error' or 'auto', got {recapture!r}")
    step = CapturedStep(spec, recapture)
    step._capture(example_batch)
    return step


class CapturedStep:
    """A training step that :func:`capture` has captured; call it with a batch.

    Learning rates, weight decay and other hyperparameters, frozen groups, schedules of any length,
    :class:`lrfast.Plateau`, ``max_grad_norm`` if gradients are clipped already and the curve's flag
    act on the next call, without a new capture.
    """

    def __init__(self, parts: CaptureSpec, recapture: Literal["error", "auto"]) -> None:
        self._spec = parts
        self._recaptures = recapture == "auto"
        self._engine: Engine | None = None  # None: nothing is captured
        self._recording = 0  # its number with the engine
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_batch: Any = None  # of another kind, as the call before had it, or None
        self._is_released = False
        self._captures = 0
        self._flag: Tensor | None = None  # the curve's
        self._outside: list[Tensor] = []  # what the graph knows beside the optimizer's parameters
        self._stream: torch.cuda.Stream | None = None  # that all memory is noted for

    def __reduce__(self) -> str:
        raise TypeError(
            "a captured step cannot be copied or pickled, because it belongs to one model in one "
            "process; call lrfast.capture for the copy"
        )

    @property
    def captures(self) -> int:
        """How often the step was captured."""
        return self._captures

    def __call__(self, batch: Any) -> Tensor:
        """Make one training step, without a host-device synchronisation.

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
        self._spec.optimizer._check_steps()
        if self._spec.recorder is not None:
            self._spec.recorder.begin()
        change = self._sync_tables()
        if change is not None:
            self._capture_again(batch, change)
        self._note_stream()
        try:
            copy_in(self._batch, batch)
        except BatchMismatch as other:
            if self._recaptures and self._is_new_kind(batch):
                return self._finish(self._run_eager())
            self._capture_again(batch, f"batch{other}")
        self._eager_batch = None
        if self._graph is None:
            return self._finish(self._spec.run(self._batch))
        self._graph.replay()
        return self._finish(None)

    def release(self) -> None:
        """Let the graph and its memory go; the optimizer and its gradients stay as they are."""
        if self._is_released:
            return
        self._drop()
        self._is_released = True
        if self._flag is not None:
            self._spec.optimizer._watch(None)

    def __enter__(self) -> CapturedStep:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _drop(self) -> None:
        if self._engine is not None:
            self._engine.forget_recording(self._recording)
        if self._graph is not None:
            self._graph.reset()
        self._engine = self._graph = self._stream = None
        self._outside = []
        if self._spec.optimizer._captured_by is self:
            self._spec.optimizer._captured_by = None

    def _sync_tables(self) -> str | None:
        """Bring the engine's tables up to date; return what a graph cannot follow."""
        spec, optimizer, engine = self._spec, self._spec.optimizer, self._engine
        if engine is None:
            return "the last capture has failed"  # or there was none yet, with "auto"
        if optimizer._engine is not engine:
            return "the optimizer's state was loaded or restored"
        if list(map(_mode, self._modules)) != self._modes:
            return "modules have changed between training and evaluation mode"
        if spec.graph_constants() != self._graph_constants:
            return "the scaler's factors or interval have changed"
        if spec.loss_factor() is not self._loss_factor:
            return "the optimizer's loss schedule was replaced"
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

    def _note_stream(self) -> None:
        """Keep what the capture's stream has made, once dropped, until this one has used it."""
        if self._graph is None:
            return
        stream = torch.cuda.current_stream(self._spec.device)
        if stream == self._stream:
            return
        gradients = [param.grad for param in self._spec.parameters()]
        for tensor in tensors_in([self._batch, self._eager_batch, gradients]):
            note_use(tensor)
        self._stream = stream

    def _capture_again(self, batch: Any, change: str) -> None:
        if not self._recaptures:
            raise RecaptureNeeded(
                f"the captured training step cannot follow this change: {change}; undo it, call "
                'lrfast.capture again, or pass recapture="auto"'
            )
        self._capture(batch)

    def _is_new_kind(self, batch: Any) -> bool:
        """Keep the batch for an eager step; whether its kind is not that of the one before."""
        try:
            copy_in(self._eager_batch, batch)
        except BatchMismatch:
            self._eager_batch = make_static(batch, self._spec.device)
            return True
        return False

    def _run_eager(self) -> Tensor:
        """Make an eager step, and keep the gradients that the graph knows in their places."""
        gradients = [(param, param.grad) for param in self._spec.parameters()]
        loss = self._spec.run(self._eager_batch)
        for param, grad in gradients:
            param.grad = grad
        return loss

    def _finish(self, loss: Tensor | None) -> Tensor:
        """Take over the loss of an eager step, or None after a replay, and count it."""
        if loss is not None:
            self._loss.copy_(loss.reshape(self._loss.shape))
            assert self._engine is not None
            self._engine.mark_gradients(self._recording)
        if self._spec.recorder is not None:
            self._spec.recorder.end()
        return self._loss

    def _capture(self, batch: Any) -> None:
        """Warm up, restore everything, and record."""
        spec, optimizer = self._spec, self._spec.optimizer
        spec.check()  # groups may have been added since
        self._drop()
        self._flag = None if spec.curve is None else spec.curve.stop_flag
        self._batch = make_static(batch, spec.device)
        engine = optimizer._engine or optimizer._make_engine()
        if self._flag is not None:
            engine.watch(self._flag)
        engine.build(optimizer.param_groups)
        if spec.scaler is not None:
            spec.scaler.scale(torch.zeros((), device=spec.device))  # makes its tensors, once
        rollback = self._warm_up(engine)
        self._engine, self._eager_batch = engine, None
        self._graph_constants = spec.graph_constants()
        self._loss_factor = spec.loss_factor()  # held: its address must stay its own
        self._modules = rollback.modules()
        self._modes = list(map(_mode, self._modules))
        change = self._sync_tables()  # makes the states that the warm-up showed to be needed
        if change is None and spec.device.type == "cuda":
            self._record(engine, rollback)
            change = self._sync_tables()  # the first replay finds its own gradients
        if change is not None:
            self._engine = None
            raise ValueError(f"train_step must not change what it is captured with: {change}")
        optimizer._captured_by = self
        self._captures += 1

    def _warm_up(self, engine: Engine) -> _Rollback:
        """Make some steps on a side stream and undo them, but for the fact of gradients."""
        spec = self._spec
        rollback = _Rollback(spec)
        found = [(p, p.grad, p.grad._version) for p in spec.parameters() if p.grad is not None]
        try:
            muted = nullcontext() if spec.recorder is None else spec.recorder.muted()
            with muted, rollback.track_modules(), _side_stream(spec.device):
                for number in range(spec.warmup):
                    if number == spec.warmup - 1:
                        self._recording = engine.begin_recording()
                    loss = spec.run(self._batch)
                engine.end_recording()
            if any(p.grad is None and grad._version != version for p, grad, version in found):
                # A graph would go on adding to them.
                raise ValueError(
                    "train_step must find no gradients if it adds to them and then sets them to "
                    "None, got some; call optimizer.zero_grad() before the capture"
                )
            given = [param for param in spec.parameters() if param.grad is not None]
        except BaseException:
            engine.forget_recording(self._recording)
            raise
        finally:
            torch.clear_autocast_cache()  # a graph has to cast the weights that it trains itself
            rollback.restore()
        for param in given:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        engine.mark_gradients(self._recording)
        self._loss = torch.zeros_like(loss)
        return rollback

    def _record(self, engine: Engine, rollback: _Rollback) -> None:
        device = self._spec.device
        random = replace(GlobalRandom.take(), cuda=[])  # a graph's registered ones stay
        graph = torch.cuda.CUDAGraph()
        for generator in self._spec.generators:
            graph.register_generator_state(generator)
        self._recording = engine.begin_recording()
        self._outside = rollback.outside()
        gradients = [(param, param.grad) for param in self._spec.parameters()]
        try:
            # Other threads, such as a loader's that pins memory, may go on. The stream that torch
            # would take is of the device that was current when it captured for the first time.
            stream = torch.cuda.Stream(device)
            with (
                rollback.undo_recording(),
                torch.cuda.device(device),
                torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
            ):
                self._loss = self._spec.run(self._batch)
            if not engine.end_recording():
                torch.cuda.synchronize(device)  # before the step on another stream is undone
                raise RuntimeError(
                    "train_step must step the optimizer on the current stream, got a step that no "
                    "CUDA graph has captured"
                )
        except BaseException as error:
            engine.forget_recording(self._recording)
            self._engine = None
            rollback.restore()
            if (reason := _refusal(error)) is not None:
                raise RuntimeError(
                    f"train_step cannot be captured: {reason}. It must read no value back from the "
                    "device; and a loss or output of an earlier step that is still held keeps the "
                    "backward pass on that step's stream: delete it, or hold loss.detach()"
                ) from error
            raise
        finally:
            torch.clear_autocast_cache()  # of casts that lie in the graph's memory
            random.put_back()
        for param, before in gradients:
            _keep_gradient(param, before)
        engine.mark_gradients(self._recording)
        self._graph = graph


def _refusal(error: BaseException) -> str | None:
    """Return CUDA's or autograd's first complaint about what a graph cannot hold, or None."""
    found = None
    cause: BaseException | None = error
    while cause is not None:
        line = str(cause).partition("\n")[0]
        if line.startswith(("CUDA error:", "During CUDA graph capture")) and "captur" in line:
            found = line
        cause = cause.__context__
    return found


def _keep_gradient(param: Tensor, before: Tensor | None) -> None:
    """Give a gradient that a recording has put into the graph's memory the values of before."""
    if param.grad is None or param.grad is before:
        return
    with torch.no_grad():
        param.grad.zero_() if before is None else param.grad.copy_(before)


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """A stream of its own for the warm-up, before and after all others; nothing on the CPU."""
    if device.type != "cuda":
        yield
        return
    main, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(main)
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        main.wait_stream(side)


class _Rollback(Snapshot):
    """A snapshot of an optimizer, of tensors and other state, and of every module called."""

    def __init__(self, spec: CaptureSpec) -> None:
        stateful = [each for each in (*spec.others, spec.scaler) if isinstance(each, Stateful)]
        super().__init__(nn.Module(), spec.optimizer, others=stateful)
        with torch.no_grad():
            self._store.save([each for each in spec.others if isinstance(each, Tensor)])
        self._store.save(list(spec.generators))

    @contextmanager
    def track_modules(self) -> Iterator[None]:
        """Copy modules when they are called for the first time, before they run."""

        def see(module: nn.Module, inputs: Any) -> None:
            if id(module) not in self._store.modes:
                with torch.no_grad():
                    self._store.save_modules(module)

        handle = register_module_forward_pre_hook(see)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def undo_recording(self) -> Iterator[None]:
        """Restore the host's part afterwards: on the device a recording runs nothing.

        Not what lies on a GPU in others, which might be made anew and which the graph knows, nor
        the optimizer's gradients.
        """
        parameters = (param for group in self._tables[0][2] for param in group["params"])
        host = self._store.on_host(apart=parameters)
        yield
        host.restore()
        for other, state in self._others:
            if not any(tensor.is_cuda for tensor in tensors_in(state)):
                other.load_state_dict(copy.deepcopy(state))

    def outside(self) -> list[Tensor]:
        """Return the memory of the modules' tensors but the optimizer's, which it checks itself."""
        own = {id(param) for group in self._tables[0][2] for param in group["params"]}
        modules = self.modules()
        parameters = [p for m in modules for p in m.parameters(recurse=False) if id(p) not in own]
        buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
        gradients = [param.grad for param in parameters if param.grad is not None]
        return [tensor.detach() for tensor in (*parameters, *buffers, *gradients)]

    def modules(self) -> list[nn.Module]:
        """Return the modules that were called, and all within them."""
        return [module for module, _ in self._store.modes.values()]
