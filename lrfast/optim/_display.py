"""A fused optimizer in words: its groups, what they share, and all that a step does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lrfast._utils.tables import Table
from lrfast.optim._options import Options
from lrfast.schedules import Schedule

# Of torch.optim, and without meaning for one launch.
_WITHOUT_MEANING = {"params", "name", "layer", "lr", "initial_lr", "capturable", "differentiable"}
_WITHOUT_MEANING |= {"foreach", "fused", "decoupled_weight_decay"}


def optimizer_text(
    name: str,
    groups: Sequence[dict[str, Any]],
    schedules: Sequence[Schedule | None],
    options: Options,
) -> str:
    """Return a table of the param groups, below what they share; some of them if there are many."""
    numbers = [
        {key: value for key, value in group.items() if key not in _WITHOUT_MEANING}
        for group in groups
    ]
    keys = dict.fromkeys(key for each in numbers for key in each)
    differing = [
        key for key in keys if any(each.get(key) != numbers[0].get(key) for each in numbers)
    ]
    # False and None say that something is not done, and None that it has no value.
    shared = {
        key: value
        for key, value in numbers[0].items()
        if key not in differing and value is not None and value is not False
    }
    defaults = asdict(Options())
    shared |= {key: value for key, value in asdict(options).items() if value != defaults[key]}
    rows = [
        (
            str(group.get("name", index)),
            f"{sum(p.numel() for p in group['params']):,}",
            f"{float(group['lr']):.3g}",
            *(str(group.get(key, "")) for key in differing),
        )
        for index, group in enumerate(groups)
    ]
    table = Table(("group", "parameters", "lr", *differing), rows, right=(1, 2)).shortened()
    lines = [f"{key}: {value}" for key, value in shared.items()]
    kinds = dict.fromkeys(schedules)
    if any(kinds):
        said = [f"{s.name}, {s.total_steps} steps" if s else "none" for s in kinds]
        lines.append(f"schedule: {'; '.join(said)}")
    body = "\n".join([*lines, table.text(width=0)])
    return f"{name} (\n" + "\n".join(f"    {line}" for line in body.splitlines()) + "\n)"
