"""Former names of arguments, under which pickles and checkpoints of lrfast 0.1 hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

_FORMER: Final = {
    "train_loader": "train",
    "val_loader": "valid",
    "diverge_threshold": "stop",
    "gradient_accumulation_steps": "accumulate",
}


def renamed(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return values by these names of now; a former one beside that of now is of a subclass."""
    now = {_FORMER[name]: name for name in names if name in _FORMER and name not in values}
    return {now.get(name, name): value for name, value in values.items()}
