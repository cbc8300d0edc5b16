"""Arguments of the wrong kind or name, refused at a public function's door by its annotations.

The functions themselves check ranges. What is asked here is whether a value is of the annotated
kind at all: an optimizer where the model should be, a text where a number should be.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import get_protocol_members, is_protocol, is_typeddict

from lrfast._utils.validation import short_repr

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Class = TypeVar("_Class", bound=type)

# Names of an argument, of which a function has one at most, and those of former versions and other
# libraries.
_NAMES: Final = (
    ("lr max_lr start_lr", "learning_rate lr_max base_lr rate"),
    ("max_lr lr end_lr", "max_lr lr"),
    ("start_lr eta_min min_factor end final_div_factor", "min_lr"),
    ("loss_fn", "criterion loss loss_func loss_function objective"),
    ("model", "net network module"),
    ("optimizer", "opt optim opt_func"),
    ("params model", "params parameters"),
    ("train_loader", "data train loader dataloader train_dl train_dataloader dls"),
    ("val_loader", "valid valid_loader valid_dl val val_dataloader validation"),
    ("num_iter total_steps steps", "num_training num_it max_iters steps num_steps"),
    ("total_steps T_max epochs", "total_iters num_training_steps T_max max_epochs"),
    ("epochs", "n_epoch n_epochs num_epochs epoch"),
    ("warmup_steps warmup steps", "num_warmup_steps warmup"),
    ("diverge_threshold", "stop early_stop_threshold diverge_th stop_div"),
    ("beta", "smooth_f smoothing"),
    ("mode", "step_mode"),
    ("gradient_accumulation_steps", "accumulate accumulation_steps accumulate_grad_batches n_acc"),
    ("div_factor final_div_factor ratio", "div div_factor initial_div_factor"),
    ("final_div_factor", "final_div div_final"),
    ("momentum", "moms max_momentum base_momentum"),
    ("anneal", "anneal_strategy"),
    ("cycle_len", "T_0"),
    ("cycle_mult", "T_mult"),
    ("weight_decay gamma decay", "wd l2 decay_rate"),
    ("max_grad_norm", "clip max_norm clip_grad gradient_clip_val"),
    ("schedule schedulers", "scheduler lr_scheduler"),
    ("betas beta", "beta1 beta2"),
    ("eps", "epsilon"),
    ("ema_decay", "ema"),
    ("callbacks", "callback cbs"),
    ("amp", "precision dtype use_amp"),
    ("path", "filename file save_path out"),
    ("ax", "axes"),
)
_FOREIGN: Final = {name: own.split() for own, names in _NAMES for name in names.split()}
_KINDS: Final[Mapping[Any, str]] = {
    NoneType: "None",
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    str: "a string",
    slice: "a slice",
    Path: "a path",
    Tensor: "a tensor",
    nn.Module: "a torch.nn.Module",
    Optimizer: "a torch.optim.Optimizer",
    type: "a class",
    Callable: "a function",
    **dict.fromkeys((Iterable, Sequence, list, tuple, np.ndarray), "a list"),
    **dict.fromkeys((Mapping, dict), "a dict"),
}
_NO_LISTS: Final = (str, bytes, nn.Module, Optimizer)


def checked(function: _Function) -> _Function:
    """Return a function that refuses arguments that its annotations do not allow.

    Numbers of numpy come in as Python's, which neither overflow nor warn.
    """
    door = functools.cache(lambda: _Door(function))  # annotations may name what comes later

    @functools.wraps(function)
    def enter(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = door().passed(args, kwargs)
        return function(*args, **kwargs)

    return cast(_Function, enter)


def checked_methods(*but: str) -> Callable[[_Class], _Class]:
    """Return a decorator that checks a class's own constructor and public methods.

    Those named are left out, because every step calls them; they check by themselves, as do those
    that load what comes from a file.
    """
    left_out = (*but, "from_dict", "load_state_dict")

    def decorate(cls: _Class) -> _Class:
        for name, member in list(vars(cls).items()):
            plain = member.__func__ if isinstance(member, classmethod) else member
            is_public = name == "__init__" or not name.startswith("_")
            if not is_public or name in left_out or not inspect.isfunction(plain):
                continue
            if len(inspect.signature(plain).parameters) > 1:
                made = checked(plain)
                setattr(cls, name, made if plain is member else classmethod(made))
        return cls

    return decorate


def unknown_argument(function: Callable[..., Any], name: str) -> str:
    """Return why a function takes no argument of that name, and which one is meant."""
    return _Door(inspect.unwrap(function)).unknown(name)


class _Door:
    """The arguments that a function takes, by name and kind."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._signature = inspect.signature(function)
        self._kinds = dict(_annotated(function, self._signature))
        parameters = list(self._signature.parameters.values())
        self._rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        self._several = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        hidden = (self._rest, self._several, "self", "cls")
        named = [p.name for p in parameters if p.name not in hidden]
        options = get_args(self._kinds.get(self._rest or ""))
        if is_typed := bool(options) and is_typeddict(options[0]):
            self._kinds |= get_type_hints(options[0])
            named += options[0].__annotations__
        self._names = named
        self._makes_schedules = function.__module__.startswith("lrfast.schedules")
        self._is_closed = self._rest is None or is_typed  # no other names

    def passed(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments, numbers as Python's; refuse names and kinds that are wrong."""
        for name in (name for name in kwargs if name not in self._names):
            if self._is_closed or self._meant_by(name):
                raise TypeError(self.unknown(name))
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:
            self._check_given_once(args, kwargs)
            return args, kwargs  # the call itself says it better
        rest = bound.arguments.get(self._rest or "", {})
        others = bound.arguments | rest
        for name, value in others.items():
            kind = self._kinds.get(name, Any)
            if kind is Any or self._is_default(name, value):
                continue
            plain = _plain(value, kind)
            for each in plain if name == self._several else [plain]:
                self._check(name, each, others)
            (rest if name in rest else bound.arguments)[name] = plain
        return bound.args, bound.kwargs

    def _check_given_once(self, args: Any, kwargs: Any) -> None:
        """Refuse an argument given by position, as another library has it there, and by name."""
        for name, value in zip(self._signature.parameters, args, strict=False):
            if name not in kwargs:
                continue
            self._check(name, value, {})
            both = f"{short_repr(value)} and {short_repr(kwargs[name])}"
            text = f"{self._title}() got {name} twice, {both}"
            is_rate = self._makes_schedules and isinstance(value, float)
            raise TypeError(f"{text}; {self._rate_advice}" if is_rate else text)

    def _is_default(self, name: str, value: Any) -> bool:
        parameter = self._signature.parameters.get(name)
        return parameter is not None and value is parameter.default

    def _check(self, name: str, value: Any, others: Mapping[str, Any]) -> None:
        if _fits(value, self._kinds[name]):
            return
        kinds = list(_options(self._kinds[name]))
        # The functions' own checks say which whole numbers, names and dtypes they want.
        is_left = any(each in (int, torch.dtype) or _names_of(each) for each in kinds)
        if is_left and (value is None or isinstance(value, str | Real)):
            return
        own_name, advice = name, self._advice(name, value, kinds, others)
        home = Mapping if isinstance(value, Mapping) else Sequence
        inner = [o for k in kinds if get_origin(k) is home for o in _options(get_args(k)[-1])]
        for place, entry in _entries(value) if inner else ():
            if not any(_fits(entry, each) for each in inner):
                name, value, kinds = f"{name}[{place!r}]", entry, inner  # the list itself is right
                advice = advice or self._advice(own_name, value, kinds, {})
                break
        wanted = _listed(list(dict.fromkeys(map(_words, kinds))))
        raise TypeError(f"{name} must be {wanted}, got {described(value)}{advice}")

    def _advice(self, name: str, value: Any, kinds: list[Any], others: Mapping[str, Any]) -> str:
        """Return the right call, as the end of a message; "" if there is none to tell."""
        for other, its_value in others.items():
            its_kind = self._kinds.get(other, Any)
            if other == name or _fits(its_value, its_kind) or not _fits(value, its_kind):
                continue
            if _fits(its_value, self._kinds[name]):
                places = self._signature.parameters.values()
                order = [p.name for p in places if p.kind is p.POSITIONAL_OR_KEYWORD]
                call = f"{self._title}({', '.join(order).removeprefix('self, ')})"
                return f"; are {name} and {other} swapped? The call is {call}"
        if isinstance(value, type):
            return f"; pass an instance, such as {value.__name__}()"
        if inspect.ismethod(value) and value.__name__.endswith("parameters"):
            return f"; call it, model.{value.__name__}()"
        if isinstance(value, nn.Module) and name == "params":
            return "; pass model.parameters()"
        if isinstance(value, str) and float in kinds:
            with suppress(ValueError):
                return f"; pass {float(value)}"
        if isinstance(value, Tensor) and float in kinds:
            return "; pass its .item()"
        if isinstance(value, Optimizer) and self._makes_schedules:
            return f"; the optimizer takes the schedule: {self._scheduled}"
        if any(getattr(each, "__name__", "") == "Schedule" for each in kinds):
            if isinstance(value, LRScheduler):
                return "; lrfast.schedules.from_torch(scheduler, total_steps) makes one of it"
            if isinstance(value, str):
                return f"; lrfast.schedules.get({value!r})(...) makes one"
            if callable(value):
                return "; lrfast.schedules.from_function(f, total_steps) makes one of it"
        if isinstance(value, Optimizer) and any("Fused" in str(each) for each in kinds):
            return "; lrfast.wrap(optimizer) makes one of it"
        if isinstance(value, Optimizer) and any(get_origin(each) is Callable for each in kinds):
            return f"; pass what makes it, such as its class, {type(value).__name__}"
        inner = next((each for each in ("opt", "optimizer") if _holds(value, each)), None)
        if Optimizer in kinds and inner is not None:
            return f"; pass its .{inner}"
        if isinstance(value, Mapping) and any(get_origin(each) is Iterable for each in kinds):
            return "; pass one of its values"
        if Optimizer in kinds and isinstance(value, list | tuple | Mapping):
            several = "step_fn= makes the whole step, and others= holds the rest"
            return f"; of several pass one: {several}" if "step_fn" in self._names else "; pass one"
        return ""

    def _meant_by(self, name: str) -> list[str]:
        """Return the arguments that former versions and other libraries call by a name."""
        return [each for each in _FOREIGN.get(name, ()) if each in self._names]

    def unknown(self, name: str) -> str:
        """Return why a name is none of the function's."""
        title = self._title
        text = f"{title}() got an unexpected keyword argument {name!r}"
        near = self._meant_by(name) or difflib.get_close_matches(name, self._names, n=1)
        if near:
            return f"{text}; did you mean {near[0]}?"
        is_rate = "max_lr" in _FOREIGN.get(name, ()) or name == "optimizer"
        if is_rate and self._makes_schedules:
            return f"{text}; {self._rate_advice}"
        return f"{text}, which takes {', '.join(self._names)}"

    @property
    def _rate_advice(self) -> str:
        return f"a schedule multiplies the lr of the optimizer that takes it: {self._scheduled}"

    @property
    def _scheduled(self) -> str:
        return f"AdamW(params, lr=..., schedule={self._title}(...))"

    @property
    def _title(self) -> str:
        return self._function.__qualname__.removesuffix(".__init__")


def _annotated(
    function: Callable[..., Any], signature: inspect.Signature
) -> Iterator[tuple[str, Any]]:
    """Yield name and kind of the parameters whose annotation exists while the program runs."""
    scope = inspect.unwrap(function).__globals__
    for name, parameter in signature.parameters.items():
        if parameter.annotation is not parameter.empty:
            holder = SimpleNamespace(__annotations__={name: parameter.annotation})
            with suppress(NameError):  # imported for type checkers only
                yield name, get_type_hints(holder, scope)[name]


def _options(kind: Any) -> Iterator[Any]:
    """Yield the kinds of a union, or the kind."""
    if get_origin(kind) in (Union, UnionType):
        for each in get_args(kind):
            yield from _options(each)
    else:
        yield kind


def _names_of(kind: Any) -> list[str]:
    """Return the names that an argument may be; none of another kind."""
    given = get_args(kind) if get_origin(kind) is Literal else ()
    return [each for each in given if isinstance(each, str)]


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a value is of an annotated kind, or of one that is not checked."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in args)
    if kind is Any:
        return True
    if kind is bool:
        return isinstance(value, bool) or (isinstance(value, Integral) and value in (0, 1))
    if kind in (float, int):
        number = Real if kind is float else Integral
        return isinstance(value, number) and not isinstance(value, bool)
    if origin is Literal:  # the functions say which of the names they know
        is_name = bool(_names_of(kind)) and isinstance(value, str)
        return is_name or any(value is each for each in args)
    if origin is type:
        return isinstance(value, type) and issubclass(value, args[0])
    if origin is Callable:
        made = args[-1] if args and isinstance(args[-1], type) else object
        if isinstance(value, type | nn.Module):  # a class makes itself, a module a tensor
            return issubclass(value if isinstance(value, type) else Tensor, made)
        return callable(value)
    if origin is Iterable:
        yields = isinstance(value, Iterable) or hasattr(value, "__getitem__")
        return yields and not isinstance(value, (*_NO_LISTS, Mapping, type))
    if origin is tuple and int in args:
        return True
    if origin is tuple and args[-1] is not Ellipsis:
        is_alike = isinstance(value, tuple | list) and len(value) == len(args)
        return is_alike and all(map(_fits, value, args))
    if origin in (list, tuple, Sequence):
        is_list = isinstance(value, Sequence) and not isinstance(value, _NO_LISTS)
        return is_list and (args[0] is int or all(_fits(each, args[0]) for each in value))
    if origin in (dict, Mapping):
        is_dict = isinstance(value, Mapping)
        return is_dict and (args[1] is int or all(_fits(each, args[1]) for each in value.values()))
    if not isinstance(origin or kind, type):
        return True
    if is_protocol(kind):
        return all(hasattr(value, name) for name in get_protocol_members(kind))
    return not _home(kind) or isinstance(value, origin or kind)


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return places and entries of a list, or keys and values of a dict."""
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def _plain(value: Any, kind: Any) -> Any:
    """Return a value with numbers, and lists of numbers, of numpy as those of Python."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, slice):
        return slice(*(_plain(each, float) for each in (value.start, value.stop, value.step)))
    if isinstance(value, np.ndarray):
        homes = [get_origin(each) for each in _options(kind)]
        return value.tolist() if Sequence in homes and np.ndarray not in homes else value
    has_numbers = type(value) in (list, tuple, dict) and any(
        isinstance(each, np.generic) for each in (value.values() if type(value) is dict else value)
    )
    if not has_numbers:
        return value
    if isinstance(value, dict):
        return {name: _plain(each, float) for name, each in value.items()}
    return type(value)(_plain(each, float) for each in value)


def _words(kind: Any) -> str:
    """Return a kind as a message says it."""
    if get_origin(kind) is Iterable and get_args(kind) == (Any,):
        return "a loader or a list"
    if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
        return f"a tuple of {len(get_args(kind))}"
    if (named := _KINDS.get(get_origin(kind) or kind)) is not None:
        return named
    if get_origin(kind) is Literal:
        return _listed(list(map(repr, get_args(kind))))
    if isinstance(kind, type):
        home = _home(kind)
        return f"{'an' if home.startswith('lrfast') else 'a'} {home}.{kind.__name__}"
    return str(kind)


def _home(kind: Any) -> str:
    """Return the package in which a class is public; "" for one that its functions name better."""
    package = kind.__module__.partition("._")[0]
    if package.startswith("torch."):
        return "torch"
    is_public = package == kind.__module__ or hasattr(sys.modules[package], kind.__name__)
    return package if is_public else ""


def described(value: object) -> str:
    """Return what came as a message says it: a short value as it is, of others their class."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    if value is None or isinstance(value, str | Real | Tensor | slice):
        return short_repr(value)
    kind = type(value).__name__
    if isinstance(value, dict | list | tuple | set) and value:
        inner = value.values() if isinstance(value, dict) else value
        return f"a {kind} of {', '.join(dict.fromkeys(type(each).__name__ for each in inner))}"
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"


def _listed(words: list[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _holds(value: object, name: str) -> bool:
    """Tell whether a value wraps an optimizer under a name."""
    return isinstance(getattr(value, "__dict__", {}).get(name), Optimizer)
