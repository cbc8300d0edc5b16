"""Checks of untrusted data from files, and of the arguments of calls.

Each returns its value, or raises a ValueError that says what was wanted and what came.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import IO, Any, TypeGuard, TypeVar

import torch
from torch import Tensor

MAX_STEPS = 2**53  # counts beyond are not told apart by doubles
_MAX = sys.float_info.max

_Entry = TypeVar("_Entry")


def short_repr(value: object, length: int = 80) -> str:
    """Return a value as a message shows it, in ``length`` characters at most unless a tensor."""
    if isinstance(value, Tensor):
        needs = ", that requires a gradient" if value.requires_grad else ""
        return f"a tensor of shape {list(value.shape)}, {value.dtype}{needs}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer, or a nesting, that Python does not print
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())  # an optimizer prints over many lines
    text = text.encode("ascii", "backslashreplace").decode()  # lone surrogates cannot be printed
    return text if len(text) <= length else text[: length - 3] + "..."


def check_int(name: str, value: Any, least: int = 0, most: int = MAX_STEPS) -> int:
    """Return a whole number within bounds."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not least <= value <= most:
        raise ValueError(
            f"{name} must be a whole number in [{least}, {most}], got {short_repr(value)}"
        )
    return int(value)


def check_finite(name: str, value: Any, least: float = -_MAX, most: float = _MAX) -> float:
    """Return a finite number within bounds, as it is."""
    if not _is_number(value) or not least <= value <= most:  # NaN fails, too
        bounds = "" if least == -_MAX else f" in [{least:g}, {most:g}]"
        raise ValueError(f"{name} must be a finite number{bounds}, got {short_repr(value)}")
    return value  # type: ignore[no-any-return]


def check_float(name: str, value: Any) -> float:
    """Return a number, which may be infinite or NaN."""
    if not _is_number(value) or (isinstance(value, int) and not -_MAX <= value <= _MAX):
        raise ValueError(f"{name} must be a number, got {short_repr(value)}")
    return value  # type: ignore[no-any-return]


def check_bool(name: str, value: Any) -> bool:
    """Return True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {short_repr(value)}")
    return value


def check_str(name: str, value: Any, choices: Collection[str] = ()) -> str:
    """Return a string, one of the choices if there are any."""
    if not isinstance(value, str) or (choices and value not in choices):
        wanted = f"one of {', '.join(choices)}" if choices else "a string"
        raise ValueError(f"{name} must be {wanted}, got {short_repr(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} must be text, got {short_repr(value)}") from error
    return value


def check_list(name: str, value: Any, least: int = 0) -> list[Any]:
    """Return a list with so many entries at least."""
    if not isinstance(value, list | tuple) or len(value) < least:
        wanted = f"a list of {least} entries or more" if least else "a list"
        raise ValueError(f"{name} must be {wanted}, got {short_repr(value)}")
    return list(value)


def check_dict(name: str, value: Any, keys: Iterable[str] = ()) -> dict[Any, Any]:
    """Return a dict with these keys, and perhaps others."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a dict, got {short_repr(value)}")
    missing = ", ".join(repr(key) for key in keys if key not in value)
    if missing:
        raise ValueError(f"{name} must hold {missing}, got {short_repr(value)}")
    return value


def check_tensor(
    name: str, value: Any, dtype: torch.dtype | None = None, dims: int | None = None
) -> Tensor:
    """Return a dense tensor without gradient, of a type and a number of dimensions.

    A few bytes of a file can describe one of any size, whose elements share them.
    """
    if (
        not isinstance(value, Tensor)
        or value.layout is not torch.strided
        or value.device.type == "meta"
        or value.is_quantized
        or value.requires_grad
        or (dtype is not None and value.dtype is not dtype)
        or (dims is not None and value.dim() != dims)
    ):
        kind = "a dense tensor" if dtype is None else f"a {str(dtype)[6:]} tensor"
        shape = "" if dims is None else f" of {dims} dimensions"
        raise ValueError(f"{name} must be {kind}{shape}, got {short_repr(value)}")
    if value.nbytes > value.untyped_storage().nbytes():
        raise ValueError(f"{name} must have memory for its elements, got {short_repr(value)}")
    return value


def check_bytes(name: str, value: Any) -> bytes:
    """Return bytes."""
    if not isinstance(value, bytes):
        raise ValueError(f"{name} must be bytes, got {short_repr(value)}")
    return value


def load_untrusted(name: str, file: IO[bytes]) -> Any:
    """Return tensors and plain data that ``torch.save`` wrote; nothing in them is executed."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # which ones torch raises for a broken file is not written down
        # Its own words go on with the advice to load what it refuses with weights_only=False.
        reason = str(error).partition("\n")[0].partition(" (1)")[0][:500]
        raise ValueError(
            f"{name} must hold tensors and plain data that torch.save wrote, got something broken "
            f"or more than that, of which nothing was executed: {reason}"
        ) from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# What follows checks arguments of calls: its messages show the value as the caller wrote it.


def is_int(value: object) -> TypeGuard[int]:
    """Tell whether a value is a whole number, of Python or numpy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_count(name: str, value: object, least: int = 1, most: float = math.inf) -> int:
    """Return a whole number from ``least`` to ``most`` as an int."""
    if not is_int(value) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number, {least} or more, got {short_repr(value)}")
    return int(value)


def check_nonnegative(name: str, value: float) -> None:
    """Check that a number is finite and 0 or more."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {value}")


def check_positive(name: str, value: float) -> None:
    """Check that a number is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and above 0, got {value}")


def check_at_least_1(name: str, value: float) -> None:
    """Check that a number is finite and 1 or more."""
    if not (math.isfinite(value) and value >= 1):
        raise ValueError(f"{name} must be finite and 1 or more, got {value}")


def check_fraction(name: str, value: float, hint: str = "") -> None:
    """Check that a number lies between 0 and 1, both included."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}{hint}")


def check_rate(name: str, value: object) -> float:
    """Return a learning rate or a weight decay, finite and 0 or more, as a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        got = short_repr(value)
        raise TypeError(f"{name} must be a number, got {got}; pass a float such as 1e-3")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value}; try 1e-3")
    return float(value)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that a value is one of the names."""
    if value not in choices:
        *others, last = map(repr, choices)
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{name} must be {wanted}, got {short_repr(value)}")


def check_key(name: str, value: str, table: Mapping[str, _Entry]) -> _Entry:
    """Return the entry of a table; the message for an unknown key names the nearest one."""
    if isinstance(value, str) and value in table:
        return table[value]
    near = difflib.get_close_matches(str(value), table, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(table)}, got {short_repr(value)}{hint}")
