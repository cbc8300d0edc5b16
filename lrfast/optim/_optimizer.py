"""The step of the fused optimizers: what stands between torch.optim's classes and the engine.

Tensors of optimizer state are made and owned here, in ``self.state``; the engine
(csrc/bindings/engine.cpp) holds addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

from lrfast._utils.dynamo import keep_out_of_graphs
from lrfast._utils.extension import extension
from lrfast._utils.validation import check_choice, check_dict
from lrfast.optim import _checkpoint, _state
from lrfast.optim._checkpoint import ENGINE_ENTRY
from lrfast.optim._loss_schedules import load_saved
from lrfast.optim._options import Options, StepOptions, check_group
from lrfast.optim._scheduling import Scheduled, ScheduleSnapshot, saved_schedules
from lrfast.optim._shards import find_shards
from lrfast.optim._telemetry import Telemetry
from lrfast.schedules import Schedule

if TYPE_CHECKING:
    from lrfast import _C


class FusedOptimizer(Scheduled):
    """What the fused optimizers share: the step, the schedule and their place in checkpoints.

    Mixed into a class of torch.optim, in front of it. Beyond torch's interface, every optimizer
    takes ``schedule=`` and has :meth:`set_schedule`, and takes the arguments of :class:`Options`.
    """

    # torch's GradScaler hands over its scale and its finding, and the step does the rest without a
    # wait. Set it to False on an optimizer whose trainer wants to clip gradients by itself.
    _step_supports_amp_scaling = True

    _rule: ClassVar[str]
    _options: Options

    def _set_up(
        self, schedule: Schedule | Sequence[Schedule | None] | None, options: StepOptions
    ) -> None:
        self._engine = None
        self._options = Options(**options)
        self._schedules = []
        self._clock_at_start = (0, 0)
        for index, group in enumerate(self.param_groups):
            check_group(index, group)
        self._choose_dtypes()
        self.set_schedule(schedule)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient and are not frozen.

        Args:
            closure: Evaluates the model again and returns the loss.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            ValueError, TypeError: For a gradient or hyperparameter that cannot be used.
            RuntimeError: For a sparse gradient. Nothing has been changed after any of these.
        """
        hooks = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
        )
        if hooks:
            return self._step_with_hooks(closure)
        return _step_without_hooks(self, closure)

    # torch.optim wraps step() to run hooks and to mark it for its profiler, at 5 us per call: we
    # run the hooks ourselves, where there are any.
    step.hooked = True  # type: ignore[attr-defined]
    keep_out_of_graphs(step)

    @property
    def max_grad_norm(self) -> float | None:
        """The norm that gradients are clipped to; may be set at any time."""
        return self._options.max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, norm: float | None) -> None:
        self._set_options(replace(self._options, max_grad_norm=norm))

    @property
    def grad_norm(self) -> Tensor | None:
        """Norm of the last step's gradients over all parameters, unscaled, before clipping.

        float64 [] on the device; None where no step has needed it (see ``max_grad_norm``,
        ``skip_nonfinite`` and ``telemetry``).
        """
        norms = [] if self._engine is None else self._engine.norms()
        return norms[0][-2] if norms else None

    def telemetry(self) -> Telemetry:
        """Return what the last steps were like. Waits for the device.

        Raises:
            ValueError: If the optimizer was made without ``telemetry=``.

        Example:
            >>> import torch, lrfast
            >>> layer = torch.nn.Linear(2, 1)
            >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.5, telemetry=100)
            >>> layer(torch.ones(1, 2)).sum().backward()
            >>> optimizer.step()
            >>> optimizer.telemetry().rates.tolist()
            [[0.5]]
        """
        capacity = self._options.telemetry
        if capacity == 0:
            raise ValueError("telemetry must be asked for: make the optimizer with telemetry=1000")
        records = [] if self._engine is None else self._engine.records()
        steps = self._clock()[1]
        first = max(self._clock_at_start[1], steps - capacity)
        fields: Iterable[Tensor]
        if records:
            slots = torch.arange(first, steps) % capacity
            fields = records[0].cpu()[slots].unbind(-1)
        else:
            fields = torch.zeros(4, 0, len(self.param_groups), dtype=torch.float64)
        return Telemetry(first, *fields)

    @contextmanager
    def ema_parameters(self) -> Iterator[None]:
        """Swap the averaged weights in for as long as the ``with`` block runs.

        Values are exchanged in place, so that addresses stay. Parameters that have never been
        updated have no average and stay as they are.

        Yields:
            Nothing: the model itself has the averages meanwhile.

        Raises:
            ValueError: If the optimizer was made without ``ema_decay=``.

        Example:
            >>> import torch, lrfast
            >>> layer = torch.nn.Linear(2, 1)
            >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.5, ema_decay=0.9)
            >>> with optimizer.ema_parameters():
            ...     output = layer(torch.ones(1, 2))
        """
        if self._options.ema_decay is None:
            raise ValueError("ema_decay must be set to average weights, got None")
        averaged = [
            (param, self.state[param]["ema"])
            for group in self.param_groups
            for param in group["params"]
            if "ema" in self.state.get(param, {})
        ]
        saved = [param.detach().clone() for param, _ in averaged]
        try:
            with torch.no_grad():
                for param, average in averaged:
                    param.copy_(average)
            yield
        finally:
            with torch.no_grad():
                for (param, _), values in zip(averaged, saved, strict=True):
                    param.copy_(values)

    def state_dict(self) -> dict[str, Any]:
        """Return torch.optim's state dict, plus schedule and step counts where they matter."""
        # As a hook in front of the user's, which then see, and may replace, all of it.
        handle = self.register_state_dict_post_hook(_complete_state_dict, prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def load_state_dict(
        self, state_dict: dict[str, Any], *, schedule: Literal["saved", "own"] | None = None
    ) -> None:
        """Load torch.optim's state dict or ours; float32 states of half parameters stay float32.

        Its schedules are attached, and go on where they stood. A state dict without a schedule,
        or a loss schedule, leaves the one that is attached.

        Args:
            state_dict: What :meth:`state_dict` returned, or torch.optim's optimizer of that name.
            schedule: Whose schedules go on, at the step where the saved ones stood, if the saved
                ones and those attached differ: the "saved" ones, or the optimizer's "own". None
                refuses such a state dict.

        Raises:
            TypeError, ValueError: If the groups or states do not fit, something in it is not what
                a state dict holds, ``schedule`` is another word, or it is None and the schedules
                differ. Nothing has been changed then.

        Example:
            >>> import torch, lrfast
            >>> parameters, cosine = [torch.zeros(3, requires_grad=True)], lrfast.schedules.cosine
            >>> saved = lrfast.SGD(parameters, lr=0.5, schedule=cosine(100)).state_dict()
            >>> longer = cosine(100).extend_to(150, saved["lrfast"]["schedule_step"])
            >>> optimizer = lrfast.SGD(parameters, lr=0.5, schedule=longer)
            >>> optimizer.load_state_dict(saved, schedule="own")
        """
        if schedule is not None:
            check_choice("schedule", schedule, ("saved", "own"))
        # Between the user's hooks: theirs before may replace the dict, theirs after see it loaded.
        given: list[dict[str, Any]] = []

        def check_and_note(state: dict[str, Any]) -> None:
            _checkpoint.check_state_dict(self, self._rule, state)
            if schedule is None:
                self._check_saved_schedules(saved_schedules(state.get(ENGINE_ENTRY, {})))
            given.append(state)

        handles = [
            self.register_load_state_dict_pre_hook(lambda _, state: check_and_note(state)),
            self.register_load_state_dict_post_hook(
                lambda _: self._complete_load(given[0], schedule == "own"), prepend=True
            ),
        ]
        try:
            with _checkpoint.unless_it_fails(self):
                super().load_state_dict(check_dict("state_dict", state_dict))
        finally:
            for handle in handles:
                handle.remove()

    def _complete_load(self, state_dict: dict[str, Any], keeps_own: bool) -> None:
        """Do what torch's load_state_dict leaves: dtypes, the schedule, its step."""
        _checkpoint.check_loaded_groups(self, self._rule)
        _state.restore_dtypes(self, state_dict)
        self._choose_dtypes()
        self._load_entry(state_dict.get(ENGINE_ENTRY, {}), keeps_own)

    def _entry(self) -> dict[str, Any]:
        """What a state dict holds beside torch's entries. Waits for the device."""
        entry = self._schedule_entry()
        if self._options.stochastic_rounding or self._options.telemetry:
            entry["steps"] = self._clock()[1]
        return entry

    def _load_entry(self, entry: dict[str, Any], keeps_own: bool = False) -> None:
        """Take the schedules, unless its own are kept, and the step counts from our entry."""
        applied, steps = self._clock()
        saved = saved_schedules(entry)
        if saved is not None:
            applied = entry["schedule_step"]
            if not keeps_own:
                self._schedules = saved
        self._engine = None
        self._clock_at_start = (applied, entry.get("steps", steps))
        self._loaded_clock = None if saved is None else self._clock_at_start
        load_saved(self, entry.get("loss_schedule"))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {
            "_schedules": self._schedules,
            "_loss_schedule": self._loss_schedule,
            "_options": self._options,
            "_clock_at_start": self._clock(),
            "_loaded_clock": self._loaded_clock,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_engine" not in self.__dict__:  # unpickled or copied
            self._engine = None
        try:
            super().__setstate__(state)
        except (KeyError, TypeError) as error:  # torch looks into states and groups by itself
            raise ValueError(f"state must hold all that its rule needs, lacks {error}") from error

    def _set_options(self, options: Options) -> None:
        self._options = options
        if self._engine is not None:
            self._engine.set_options(options.encode())

    def _update(self) -> None:
        engine = self._engine or self._make_engine()
        attributes = self.__dict__  # where a GradScaler leaves the two
        grad_scale, found_inf = attributes.get("grad_scale"), attributes.get("found_inf")
        missing = engine.step(self.param_groups, self.state, grad_scale, found_inf)
        if missing is None:
            return
        self._prepare_states(engine, missing)
        missing = engine.step(self.param_groups, self.state, grad_scale, found_inf)
        if missing is not None:
            raise RuntimeError(f"{len(missing)} parameters have no usable optimizer state")

    def _step_with_hooks(self, closure: Callable[[], Any] | None) -> Any:
        hooked = torch.optim.Optimizer.profile_hook_step(_step_without_hooks)
        return hooked(self) if closure is None else hooked(self, closure)

    def _make_engine(self) -> _C.Engine:
        engine: _C.Engine = extension().Engine(self._rule, find_shards)
        self._send_schedules(engine)
        engine.set_options(self._options.encode())
        engine.set_clock(*self._clock_at_start)
        self._engine = engine
        return engine

    def _prepare_states(self, engine: _C.Engine, missing: list[_C.MissingStates]) -> None:
        """Make the states that the engine misses, or bring loaded ones into the form it needs."""
        for names in missing:
            self._prepare_state(engine, names)

    def _prepare_state(self, engine: _C.Engine, names: _C.MissingStates) -> None:
        param, count, product = names.param, names.count, names.product
        state = self.state[param]
        dtype = self._options.state_dtype_of(param, [state.get(name) for name in names.tensors])
        for name in names.tensors:
            if state.get(name) is None:
                state[name] = self._new_state(name, param, dtype)
            else:
                state[name] = _state.usable(name, state[name], param, dtype)
        if self._options.ema_decay is not None:
            average = param.detach() if state.get("ema") is None else state["ema"]
            state["ema"] = _state.usable("ema", average, param, _state.average_dtype(param))
        is_new = count not in state
        if count is not None:
            state[count] = _state.scalar(state.get(count, 0.0), param, torch.float32)
        if product is not None and product in state:
            state[product] = _state.scalar(state[product], param, torch.float64)
        elif product is not None and names.needs_product:
            # Synchronises with the device, once per parameter: when its momentum is first cycled.
            steps = 0.0 if is_new else float(state[count])
            value = engine.product_after(names.group, steps)
            state[product] = _state.scalar(value, param, torch.float64)

    def _new_state(self, name: str, param: Tensor, dtype: torch.dtype) -> Tensor:
        """A parameter's first state; rules that start elsewhere than at 0 override it."""
        return _state.zeros_like(param, dtype)

    def _choose_dtypes(self) -> None:
        """Bring the moments that are there into ``state_dtype``, where that is given."""
        if self._options.state_dtype is not None:
            _state.choose_dtypes(self, lambda param: self._options.state_dtype_of(param, []))

    def _watch(self, flag: Tensor | None) -> None:
        """Let steps change nothing while ``flag``, one float64 on the device, is not zero."""
        (self._engine or self._make_engine()).watch(flag)

    def _engine_snapshot(self) -> _Snapshot:
        return self._schedule_snapshot(), [tensor.clone() for tensor in self._memory()]

    def _engine_restore(self, snapshot: _Snapshot) -> None:
        schedules, saved = snapshot
        self._schedule_restore(schedules)
        engine, tensors = self._engine, self._memory()
        if engine is not None and saved and [t.shape for t in tensors] == [t.shape for t in saved]:
            self._send_schedules(engine)
            for tensor, values in zip(tensors, saved, strict=True):
                tensor.copy_(values)
            return
        # Groups were added or states loaded since: the next step makes an engine anew.
        self._engine = None
        if saved:
            self._clock_at_start = tuple(saved[0].tolist())

    def _memory(self) -> list[Tensor]:
        """What the engine itself remembers from step to step: clocks, rates, records."""
        engine = self._engine
        return [] if engine is None else [*engine.clocks(), *engine.rates(), *engine.records()]


def _complete_state_dict(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    assert isinstance(optimizer, FusedOptimizer)
    counts = [] if optimizer._engine is None else optimizer._engine.private_counts()
    _state.mark_unbegun_buffers(optimizer, counts, state)
    entry = optimizer._entry()
    if entry:
        state[ENGINE_ENTRY] = entry


_Snapshot = tuple[ScheduleSnapshot, list[Tensor]]  # with copies of the engine's memory


def _step_without_hooks(optimizer: FusedOptimizer, closure: Callable[[], Any] | None = None) -> Any:
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    optimizer._update()
    return loss
