"""Learning rates of layer groups, from one number, two, a list or names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from lrfast._utils.arguments import checked
from lrfast._utils.validation import check_fraction, check_rate, is_int
from lrfast.groups._explicit import compile_pattern
from lrfast.groups._layer_group import LayerGroups

Rates: TypeAlias = float | slice | Sequence[float] | Mapping[str, float]


@checked
def spread(lr: Rates, n: int | LayerGroups) -> list[float]:
    """Spread learning rates over layer groups.

    ``slice(a, b)`` grows geometrically, ``a * (b / a) ** (i / (n - 1))``, and hits both ends
    exactly. ``slice(b)`` is b for the last group and b / 10 for all others, as in fastai 2.8's
    ``Optimizer.set_hyper``; unlike there, ``slice(0, b)`` is an error and no ``slice(b)``.

    Args:
        lr: A number for all groups, a slice, a list or tuple with one number per group, or a dict.
            A dict's keys are names of groups or else patterns, as `layer_groups` takes them, that
            match all parameters of a group; the first pattern counts. Finite and 0 or more.
        n: Number of groups, 1 or more, or the groups themselves, which a dict needs.

    Returns:
        [n] learning rates, body first.

    Raises:
        TypeError: If a learning rate is not a number, or there is a dict and n is a number.
        ValueError: If a learning rate is negative or not finite, a slice has a zero, no end, a step
            or only one group, a list has another length, or a dict names part of a group or of all.

    Example:
        >>> spread(slice(1e-3), 3)
        [0.0001, 0.0001, 0.001]
    """
    if isinstance(lr, Mapping):
        if not isinstance(n, LayerGroups):
            raise TypeError(f"n must be the layer groups if lr is a dict, got {n!r}")
        return _named_rates(lr, n)
    count = len(n) if isinstance(n, LayerGroups) else n
    if not is_int(count) or count < 1:
        raise ValueError(f"n must be a whole number of groups from 1 on, got {count!r}")
    if isinstance(lr, slice):
        return _spread_slice(lr, count)
    if isinstance(lr, (list, tuple)):
        if len(lr) != count:
            raise ValueError(f"lr must have one rate per group, got {len(lr)} for {count} groups")
        return [check_rate(f"lr[{i}]", rate) for i, rate in enumerate(lr)]
    return [check_rate("lr", lr)] * count


def decayed(lr: object, n: int, decay: float, min_scale: float) -> list[float]:
    """Return ``lr * max(floor, factor ** (n - 1 - i))`` for each group i of n."""
    if isinstance(lr, (slice, Sequence, Mapping)):
        raise ValueError(f"lr must be a number if there is a decay, got {lr!r}")
    top, factor = check_rate("lr", lr), check_rate("decay", decay)
    hint = "; the rate falls towards the body: for a divisor of 2.6 pass 1/2.6"
    check_fraction("decay", decay, hint)
    if factor == 0:
        raise ValueError("decay must be above 0, got 0; freeze the body instead")
    floor = check_rate("min_scale", min_scale)
    check_fraction("min_scale", min_scale)
    return [top * max(floor, factor ** (n - 1 - i)) for i in range(n)]


def _spread_slice(lr: slice, n: int) -> list[float]:
    if lr.stop is None or lr.step is not None:
        raise ValueError(f"lr must be slice(first, last) or slice(last) if a slice, got {lr}")
    last = check_rate("lr.stop", lr.stop)
    first = last / 10 if lr.start is None else check_rate("lr.start", lr.start)
    if first == 0 or last == 0:
        raise ValueError(f"lr must not be 0 at an end of a slice, got {lr}; pass a list for that")
    if n == 1:
        raise ValueError(f"lr must be a number if there is one group, got {lr}; pass {last:g}")
    if lr.start is None:
        return [first] * (n - 1) + [last]
    # The formula may miss the last one by a rounding error.
    return [first * (last / first) ** (i / (n - 1)) for i in range(n - 1)] + [last]


def _named_rates(lr: Mapping[str, float], groups: LayerGroups) -> list[float]:
    for key in lr:
        if not isinstance(key, str):
            raise TypeError(f"lr must have names of groups or patterns as keys, got {key!r}")
    rates = {key: check_rate(f"lr[{key!r}]", rate) for key, rate in lr.items()}
    names = {group.name for group in groups}
    unused = set(rates) - names
    chosen: list[float | None] = [rates.get(group.name) for group in groups]
    for key in [key for key in rates if key not in names]:
        matches = compile_pattern(key)
        for index, group in enumerate(groups):
            hits = sum(1 for name in group.names if matches(name))
            if hits:
                unused.discard(key)
            if not hits or chosen[index] is not None:
                continue
            if hits < len(group.names):
                raise ValueError(
                    f"lr must match whole groups, got {key!r}, which matches {hits} of "
                    f"{len(group.names)} parameters of group {group.name!r}; "
                    "pass groups that it fits"
                )
            chosen[index] = rates[key]
    if unused:
        raise ValueError(f"lr must name groups or match parameters, got {min(unused)!r}")
    missing = [g.name for g, rate in zip(groups, chosen, strict=True) if rate is None]
    if missing:
        raise ValueError(f"lr must give every group a rate, got none for {', '.join(missing)}")
    return [rate for rate in chosen if rate is not None]
