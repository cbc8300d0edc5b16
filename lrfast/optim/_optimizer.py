"""Base of the fused optimizers: their step, states and checkpoints.

Tensors of optimizer state are made and owned here, in ``self.state``; the engine
(csrc/bindings/engine.cpp) holds addresses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

from lrfast._utils.arguments import checked_methods
from lrfast._utils.async_copy import note_use
from lrfast._utils.dynamo import disable_dynamo
from lrfast._utils.extension import extension
from lrfast._utils.public import public_in
from lrfast._utils.validation import check_choice, check_dict
from lrfast.optim import _checkpoint, _state
from lrfast.optim._buffer_averages import BufferAverages, buffers_of, saved_averages
from lrfast.optim._checkpoint import ENGINE_ENTRY, without_wrappers
from lrfast.optim._display import optimizer_text
from lrfast.optim._loss_schedules import LossSchedule, attached, load_saved
from lrfast.optim._memory import Memory, memory_of
from lrfast.optim._newton_schulz import NewtonSchulz
from lrfast.optim._options import (
    Options,
    Schedules,
    StateDtype,
    StepOptions,
    check_group,
    check_master,
    check_state_dtypes,
    check_update,
    state_dtype_of,
)
from lrfast.optim._scheduling import ScheduleSnapshot, SchedulingMixin, saved_schedules
from lrfast.optim._shards import find_shards

if TYPE_CHECKING:
    import lrfast._C as _C


@public_in("lrfast.telemetry")
@dataclass(frozen=True)
class Telemetry:
    """Norms and learning rates of past steps, oldest first: float64 [steps, groups] on the CPU.

    Args:
        first_step: Number of the oldest recorded step, counted from 0.
        rates: Learning rates that the steps used.
        grad_norms: Norms of the gradients, unscaled, before clipping.
        update_norms: Norms of the changes of the weights.
        weight_norms: Norms of the weights after the steps.
    """

    first_step: int
    rates: Tensor
    grad_norms: Tensor
    update_norms: Tensor
    weight_norms: Tensor

    @property
    def update_ratios(self) -> Tensor:
        """Update norms over weight norms, about 1e-3 if training goes well."""
        return self.update_norms / self.weight_norms


@checked_methods("step")
class FusedOptimizer(SchedulingMixin):
    """Base of the fused optimizers: one launch updates all parameters.

    Mixed into a class of torch.optim, in front of it. Beyond torch's interface, every optimizer
    takes ``schedule=`` and has :meth:`set_schedule`, and takes the arguments of :class:`Options`.
    """

    # GradScaler passes its scale and found_inf, and the step unscales without a synchronisation.
    # Set it to False on an optimizer whose trainer clips unscaled gradients by itself.
    _step_supports_amp_scaling = True

    _rule: ClassVar[str]
    _products: ClassVar[NewtonSchulz | None] = None  # of matrices, in a step of Muon
    _options: Options
    _holds_average = False  # within ema_parameters()
    _keeps_shapes = False  # True while states are saved as they are, not in a package's shapes
    # Of an engine yet to be made, for a rule that estimates a distance: see _distance.
    _distance_at_start: tuple[float, ...] = ()

    def _set_up(self, schedule: Schedules, options: StepOptions) -> None:
        self._engine = None
        self._options = Options(**options)
        self._schedules = []
        self._clock_at_start = (0, 0)
        for index, group in enumerate(self.param_groups):
            check_group(index, group)
        self._check_options()
        self._choose_dtypes()
        self.set_schedule(schedule)

    def _check_options(self) -> None:
        check_update(self._rule, self._options, self.param_groups)
        self._check_state_dtypes()

    def _adopt(self) -> None:
        """Turn groups and states of the optimizer that is taken over into one's own."""

    def __repr__(self) -> str:
        return optimizer_text(type(self).__name__, self.param_groups, self.schedules, self._options)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient and are not frozen.

        Args:
            closure : Evaluates the model again and returns the loss.

        Returns:
            The loss that ``closure`` returned, or None.

        Raises:
            ValueError, TypeError: If a gradient or hyperparameter cannot be used.
            RuntimeError: If a gradient is sparse. Nothing has changed after any of these.
        """
        hooks = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
        )
        if hooks:
            hooked = torch.optim.Optimizer.profile_hook_step(_step_without_hooks)
            return hooked(self) if closure is None else hooked(self, closure)
        return _step_without_hooks(self, closure)

    # torch.optim wraps step() to run hooks and to mark it for its profiler, at 5 us per call; the
    # hooks, if there are any, run here instead.
    step.hooked = True  # type: ignore[attr-defined]
    disable_dynamo(step)

    @property
    def max_grad_norm(self) -> float | None:
        """Norm that gradients are clipped to, above 0; None clips nothing. May be set any time."""
        return self._options.max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, norm: float | None) -> None:
        self._set_options(replace(self._options, max_grad_norm=norm))

    @property
    def loss_schedule(self) -> LossSchedule | None:
        """The Plateau or Greedy whose factor multiplies the learning rates, or None.

        Loading a state dict that holds one makes it, if the optimizer has none.
        """
        return attached(self)

    @property
    def grad_norm(self) -> Tensor | None:
        """Norm of the last step's gradients over all parameters, unscaled, before clipping.

        float64 [] on the device; None if no step has needed it (see ``max_grad_norm``,
        ``skip_nonfinite`` and ``telemetry``).
        """
        norms = [] if self._engine is None else self._engine.norms()
        return norms[0][-2] if norms else None

    def telemetry(self) -> Telemetry:
        """Return the norms and learning rates of the last steps. Synchronises the device.

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
        if records:
            kept = records[0].cpu()[torch.arange(first, steps) % capacity]
        else:
            kept = torch.zeros(0, len(self.param_groups), 4, dtype=torch.float64)
        return Telemetry(first, *kept.unbind(-1))

    def memory(self) -> Memory:
        """Return the bytes of parameters, gradients and states, as they are now.

        States are made by a parameter's first step.

        Example:
            >>> import torch, lrfast
            >>> layer = torch.nn.Linear(256, 256, bias=False)
            >>> optimizer = lrfast.AdamW(layer.parameters(), state_dtype="8bit")
            >>> layer(torch.ones(1, 256)).sum().backward()
            >>> optimizer.step()
            >>> print(optimizer.memory())
                        dtype      bytes  per parameter
            parameters  float32  262,144              4
            gradients   float32  262,144              4
            exp_avg     8bit      65,792              1
            exp_avg_sq  8bit      65,792              1
            step        float32        4        6.1e-05
            states               131,588           2.01
            total                655,876             10
        """
        return memory_of(self.param_groups, self.state)

    def master_params(self) -> dict[Tensor, Tensor]:
        """Return copies of the weights by parameter: float32 where ``master`` keeps their bits.

        Others are in their parameter's dtype. A parameter that was never updated is its weight.

        Example:
            >>> import torch, lrfast
            >>> layer = torch.nn.Linear(2, 1).bfloat16()
            >>> optimizer = lrfast.AdamW(layer.parameters(), master="32bit")
            >>> layer(torch.ones(1, 2).bfloat16()).sum().backward()
            >>> optimizer.step()
            >>> masters = optimizer.master_params()
            >>> weights = {name: masters[param] for name, param in layer.named_parameters()}
            >>> weights["bias"].dtype
            torch.float32
        """
        return {
            param: self._master_param(param)
            for group in self.param_groups
            for param in group["params"]
        }

    def _master_param(self, param: Tensor) -> Tensor:
        """Return a copy of a parameter's weight."""
        if self._options._master_dtype_of(param) is None:
            return param.detach().clone()
        bits = self.state.get(param, {}).get(_state.MASTER)
        return param.detach().float() if bits is None else _state.master_weight(param, bits)

    def average_buffers(self, model: nn.Module) -> None:
        """Keep an EMA of a model's buffers, too, such as the statistics of batch norm.

        It starts at the buffers as they are, and moves at every applied step with the decay of the
        weights' EMA, without a synchronisation; :meth:`ema_parameters` gives it to the model.
        Buffers that are not of a floating-point dtype or not persistent have no EMA. State dicts
        hold it: call this before :meth:`load_state_dict` or after it. Another call starts it anew.

        Args:
            model: The module, on its device, with the optimizer's parameters.

        Raises:
            ValueError: If the optimizer was made without ``ema_decay=``, its step is captured, or
                the state dict that was loaded holds an EMA of other buffers.

        Example:
            >>> import torch, lrfast
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
            >>> optimizer = lrfast.SGD(model.parameters(), lr=0.5, ema_decay=0.9)
            >>> optimizer.average_buffers(model)
        """
        self._check_averages()
        if self._captured_by is not None:
            raise ValueError(
                "average_buffers must be called before lrfast.capture, got an optimizer whose step "
                "is captured; release that first"
            )
        buffers = {without_wrappers(name): place for name, place in buffers_of(model).items()}
        averages = BufferAverages(buffers)
        if saved := self._saved_averages:
            averages.check(saved)
            averages = averages.loaded(saved)
        self._buffer_averages, self._saved_averages = averages, None

    @contextmanager
    def ema_parameters(self) -> Iterator[None]:
        """Give the model the EMA of its weights for the ``with`` block, in place.

        Parameters that were never updated have no EMA and stay as they are, and so do buffers
        without :meth:`average_buffers`. A step within the block is refused, because the weights of
        before return after it.

        Yields:
            None.

        Raises:
            ValueError: If the optimizer was made without ``ema_decay=``.

        Example:
            >>> import torch, lrfast
            >>> layer = torch.nn.Linear(2, 1)
            >>> optimizer = lrfast.SGD(layer.parameters(), lr=0.5, ema_decay=0.9)
            >>> with optimizer.ema_parameters():
            ...     output = layer(torch.ones(1, 2))
        """
        self._check_averages()
        outer = self._holds_average
        params = (param for group in self.param_groups for param in group["params"])
        pairs = [(p, self.state[p]["ema"]) for p in params if "ema" in self.state.get(p, {})]
        if self._buffer_averages is not None:
            pairs += self._buffer_averages.pairs()
        averaged = [(param, average, param.detach().clone()) for param, average in pairs]
        self._holds_average = True
        try:
            with torch.no_grad():
                for param, average, _ in averaged:
                    param.copy_(average)
            yield
        finally:
            self._holds_average = outer
            with torch.no_grad():
                for param, _, own in averaged:
                    param.copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """Return torch.optim's state dict, with the schedules and step counts if there are any."""
        # As a hook before the user's, which then see all of it and may replace it.
        with self.register_state_dict_post_hook(_complete_state_dict, prepend=True):
            return super().state_dict()

    def float32_state_dict(self) -> dict[str, Any]:
        """Return the state dict that torch.optim can load: states in 8 bits are float32.

        Master bits are left out; see :meth:`master_params`.

        Example:
            >>> import torch, lrfast
            >>> layer = torch.nn.Linear(64, 64)
            >>> optimizer = lrfast.AdamW(layer.parameters(), state_dtype="8bit")
            >>> layer(torch.ones(1, 64)).sum().backward()
            >>> optimizer.step()
            >>> torch.optim.AdamW(layer.parameters()).load_state_dict(
            ...     optimizer.float32_state_dict()
            ... )
        """
        state_dict = self.state_dict()
        coded = extension().coded_states.get(self._rule, {})
        for place, state in state_dict["state"].items():
            names = {name for name in coded if name + _state.CODES in state}
            wide = {name: _state.decoded(state, name, coded[name]) for name in names}
            gone = {_state.MASTER, *wide}
            kept = {key: value for key, value in state.items() if _state.base_name(key) not in gone}
            state_dict["state"][place] = kept | wide
        return state_dict

    def load_state_dict(
        self, state_dict: dict[str, Any], *, schedule: Literal["saved", "own"] | None = None
    ) -> None:
        """Load a state dict of lrfast or torch.optim; float32 states of half parameters stay so.

        Its schedules are attached and go on at the saved step. A state dict without a schedule, or
        without a loss schedule, leaves the attached one. An attached schedule of the same kind with
        another length goes on itself, at the saved step, with a UserWarning; so does any other that
        a trainer's integration has attached.
        Where the groups of both have "param_names", as optimizers over ``named_parameters()`` have,
        states go by name, otherwise by position. States in 8 bits become float32 and the other way
        round, if ``state_dtype`` says so, the optimizer's own and its param groups'; otherwise
        loading changes no bit.

        Args:
            state_dict: From :meth:`state_dict`, of this class or of torch.optim's of that name.
            schedule: Which schedules go on, at the saved step, if the saved and the attached ones
                differ: "saved", or the optimizer's "own". None, the default: as above; others are
                refused.

        Raises:
            TypeError, ValueError: If groups or states do not fit, an entry is not what a state dict
                holds, ``schedule`` is another word, or it is None and the schedules differ.
                Nothing has changed then.

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
        # The user's pre-hooks run first and may replace the dict; the post-hooks see it loaded.
        given: list[dict[str, Any]] = []
        chosen: list[tuple[bool, str]] = []

        def check_and_note(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            state = _checkpoint.check_state_dict(self, self._rule, state)
            chosen.append(self._keeps_own(state.get(ENGINE_ENTRY, {}), schedule))
            given.append(state)
            return state

        def complete(_: torch.optim.Optimizer) -> None:
            # What torch's own does not restore.
            _checkpoint.check_loaded_groups(self, self._rule)
            _state.restore_dtypes(self, given[0])
            self._choose_dtypes()
            self._load_entry(given[0].get(ENGINE_ENTRY, {}), keeps_own=chosen[0][0])

        with (
            self.register_load_state_dict_pre_hook(check_and_note),
            self.register_load_state_dict_post_hook(complete, prepend=True),
            _checkpoint.rollback_on_error(self),
        ):
            super().load_state_dict(check_dict("state_dict", state_dict))
        if note := chosen[0][1]:
            warnings.warn(note, stacklevel=2)

    def _as_saved(self, state: dict[str, Any]) -> None:
        """Add what the package of the original keeps elsewhere to a state dict."""

    def _entry(self) -> dict[str, Any]:
        """Return lrfast's entry of a state dict. Synchronises the device."""
        entry = self._schedule_entry()
        options = self._options
        averages_by_step = options.ema_start > 0 or options.ema_warmup
        rounds = options.stochastic_rounding or options._has_codes(self.param_groups)
        if rounds or options.telemetry or averages_by_step:
            entry["steps"] = self._clock()[1]
        if options.master is not None:
            entry["master"] = options.master
        averages = self._buffer_averages
        if buffers := self._saved_averages if averages is None else averages.state_dict():
            entry["ema_buffers"] = buffers
        return entry

    def _load_entry(self, entry: dict[str, Any], keeps_own: bool = False) -> None:
        """Take step counts from lrfast's entry, and the schedules unless the own ones are kept."""
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
        averages = saved_averages(entry)
        if self._buffer_averages is None:
            self._saved_averages = averages
        else:
            self._buffer_averages = self._buffer_averages.loaded(averages)

    def __getstate__(self) -> dict[str, Any]:
        averages = ("_buffer_averages", "_saved_averages")
        names = ("_schedules", "_loss_schedule", "_options", "_loaded_clock", *averages)
        own = {name: getattr(self, name) for name in names}
        start = {"_clock_at_start": self._clock(), "_distance_at_start": self._distance()}
        return super().__getstate__() | own | start

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_engine" not in self.__dict__:  # unpickled or copied
            self._engine = None
        try:
            super().__setstate__(state)
        except (KeyError, TypeError) as error:  # torch reads states and groups unchecked
            raise ValueError(f"state must hold all that its rule needs, lacks {error}") from error

    def _set_options(self, options: Options) -> None:
        self._options = options
        if self._engine is not None:
            self._engine.set_options(self._encoded_options())

    def _encoded_options(self) -> _C.EngineOptions:
        return self._options.encode(self._options._has_codes(self.param_groups))

    def _check_steps(self) -> None:
        """Refuse a step whose update would be lost."""
        if self._holds_average:
            raise RuntimeError(
                "step must wait until ema_parameters() has ended, got a call within its block: the "
                "model holds the EMA of its weights, and the update would be thrown away"
            )

    def _check_averages(self) -> None:
        if self._options.ema_decay is None:
            raise ValueError("ema_decay must be set to average weights, got None")

    def _update(self) -> None:
        averages = self._buffer_averages
        if not averages or self._options.ema_decay is None:
            self._update_weights()
            return
        buffers, before = averages.gather(), self._steps_applied()
        self._update_weights()
        after = self._steps_applied()
        if isinstance(after, Tensor):  # else no parameter had a gradient yet
            averages.update(buffers, self._options, before, after)

    def _steps_applied(self) -> Tensor | int:
        """Return a copy of the number of steps applied in all, on the device."""
        clocks = [] if self._engine is None else self._engine.clocks()
        return clocks[0][1].clone() if clocks else self._clock_at_start[1]

    def _update_weights(self) -> None:
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

    def _make_engine(self) -> _C.Engine:
        engine: _C.Engine = extension().Engine(self._rule, find_shards, self._products)
        self._send_schedules(engine)
        if any(self._schedules) and not self._loss_factor_paused:  # which is a range test's
            self._warn_of_torch()
        engine.set_options(self._encoded_options())
        engine.set_clock(*self._clock_at_start)
        if self._distance_at_start:
            engine.set_distance(self._distance_at_start)
        self._engine = engine
        return engine

    def _prepare_states(self, engine: _C.Engine, missing: list[_C.MissingStates]) -> None:
        """Make the states that the engine misses, or convert loaded ones to the form it needs."""
        self._check_options()  # parameters may have been added, or have moved
        if self._options._has_codes(self.param_groups):
            engine.set_options(self._encoded_options())
        for names in missing:
            self._prepare_state(engine, names)

    def _prepare_state(self, engine: _C.Engine, names: _C.MissingStates) -> None:
        param, count, product = names.param, names.count, names.product
        state = self.state[param]
        asked = self._options._asked_of(self.param_groups[names.group], param)
        dtype = state_dtype_of(asked, param, self._moments(param))
        coded = extension().coded_states.get(self._rule, {})
        for name in names.tensors:
            is_new = state.get(name) is None and name + _state.CODES not in state
            if is_new and dtype is torch.uint8:
                _state.make_codes(state, name, param)
            elif is_new:
                state[name] = self._new_state(name, param, dtype)
            else:
                _state.convert(state, name, param, dtype, coded.get(name, False))
        if self._options.ema_decay is not None:
            average = param.detach() if state.get("ema") is None else state["ema"]
            kept_in = _state.average_dtype(param)
            state["ema"] = _state.as_engine_state("ema", average, param, kept_in)
        if (bits := self._options._master_dtype_of(param)) is not None:
            if (kept := state.get(_state.MASTER)) is not None:
                kept = _state.as_master_bits(kept, bits)
                kept = _state.as_engine_state(_state.MASTER, kept, param, bits)
            state[_state.MASTER] = _state.zeros_like(param, bits) if kept is None else kept
        is_new = count not in state
        if count is not None:
            kept = state.get(count, 0.0)
            state[count] = _state.as_scalar(kept, param, _state.count_dtype(kept))
        if product is not None and product in state:
            state[product] = _state.as_scalar(state[product], param, torch.float64)
        elif product is not None and names.needs_product:
            # Synchronises once per parameter: when its momentum is first cycled.
            steps = 0.0 if is_new else float(state[count])
            value = engine.product_after(names.group, steps)
            state[product] = _state.as_scalar(value, param, torch.float64)
        if (largest := names.largest) is not None:
            state[largest] = _state.as_scalar(state.get(largest, 0.0), param, torch.float64)

    def _new_state(self, name: str, param: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a parameter's first state: zeros, unless a rule overrides it."""
        return _state.zeros_like(param, dtype)

    def _choose_dtypes(self) -> None:
        """Convert existing moments to the dtype asked for, if one is, and others from 8 bits."""
        for group in self.param_groups if self.state else ():
            asked = self._options._asked_of(group)
            for param in group["params"]:
                self._choose_dtype(param, asked)

    def _choose_dtype(self, param: Tensor, asked: StateDtype) -> None:
        state = self.state.get(param, {})
        coded = extension().coded_states.get(self._rule, {})
        bits, kept = self._options._master_dtype_of(param), state.pop(_state.MASTER, None)
        if bits is not None and kept is not None:
            state[_state.MASTER] = _state.as_master_bits(kept, bits)
        dtype = state_dtype_of(asked, param, self._moments(param))
        to_codes = dtype is torch.uint8
        for name in {*map(_state.base_name, state)} - {*_state.NOT_MOMENTS}:
            value = state.get(name)
            is_coded = name + _state.CODES in state
            if name in coded and (is_coded or (to_codes and isinstance(value, Tensor))):
                _state.convert(state, name, param, dtype, coded[name])
            elif asked is not None and not to_codes and isinstance(value, Tensor):
                note_use(value)
                state[name] = value.to(dtype)

    def _check_state_dtypes(self) -> None:
        """Check that states can be kept as options and param groups ask for."""
        check_state_dtypes(self._rule, self._options, self.param_groups)
        check_master(self._rule, self._options.master)

    def _moments(self, param: Tensor) -> list[Tensor]:
        """Return the tensors of a parameter's moments that there are."""
        state = self.state.get(param, {})
        names = {*chain.from_iterable(extension().rule_states[self._rule])}
        held = [state.get(key) for name in names for key in (name, name + _state.CODES)]
        return [value for value in held if isinstance(value, Tensor)]

    def _watch(self, flag: Tensor | None) -> None:
        """Let steps change nothing while ``flag``, one float64 on the device, is not 0."""
        (self._engine or self._make_engine()).watch(flag)

    def _engine_snapshot(self) -> _Snapshot:
        averages = self._buffer_averages
        buffers = [] if averages is None else [tensor.clone() for tensor in averages.tensors]
        engine = [tensor.clone() for tensor in self._memory()]
        start = self._distance_at_start
        return self._schedule_snapshot(), start, engine, averages, buffers

    def _engine_restore(self, snapshot: _Snapshot) -> None:
        schedules, self._distance_at_start, saved, self._buffer_averages, buffers = snapshot
        self._schedule_restore(schedules)
        averages = self._buffer_averages
        for tensor, values in zip(
            [] if averages is None else averages.tensors, buffers, strict=True
        ):
            tensor.copy_(values)
        engine, tensors = self._engine, self._memory()
        if engine is not None and saved and [t.shape for t in tensors] == [t.shape for t in saved]:
            self._send_schedules(engine)
            for tensor, values in zip(tensors, saved, strict=True):
                tensor.copy_(values)
            return
        # Groups were added or states loaded since: the next step makes a new engine.
        self._engine = None
        if saved:
            self._clock_at_start = tuple(saved[0].tolist())
            if self._distance_at_start:
                self._distance_at_start = tuple(saved[-1].tolist())

    def _memory(self) -> list[Tensor]:
        """Return what the engine itself keeps: clocks, rates, records and the distance."""
        engine = self._engine
        if engine is None:
            return []
        return [*engine.clocks(), *engine.rates(), *engine.records(), *engine.distances()]

    def _distance(self) -> tuple[float, ...]:
        """Return the numbers of the engine's distance, () for a rule without. Synchronises."""
        distances = [] if self._engine is None else self._engine.distances()
        return tuple(distances[0].tolist()) if distances else self._distance_at_start


def _complete_state_dict(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    assert isinstance(optimizer, FusedOptimizer)
    counts = [] if optimizer._engine is None else optimizer._engine.private_counts()
    _state.clear_unstarted_momentum(optimizer, counts, state)
    for place in chain.from_iterable(group["params"] for group in state["param_groups"]):
        if isinstance(own := state["state"].get(place), dict):
            spread = _state.with_spread_scales(own, always=optimizer._keeps_shapes)
            state["state"][place] = spread
    optimizer._as_saved(state)
    if entry := optimizer._entry():
        state[ENGINE_ENTRY] = entry


# With copies of the engine's memory and of the averages.
_Snapshot = tuple[
    ScheduleSnapshot, tuple[float, ...], list[Tensor], BufferAverages | None, list[Tensor]
]


def _step_without_hooks(optimizer: FusedOptimizer, closure: Callable[[], Any] | None = None) -> Any:
    optimizer._check_steps()
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    optimizer._update()
    return loss
