"""Former names of arguments, under which pickles and checkpoints of lrfast 0.1 hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_FORMER: Final = {
    "train": "train_loader",
    "valid": "val_loader",
    "stop": "diverge_threshold",
    "accumulate": "gradient_accumulation_steps",
}


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by the names of now."""
    return {_FORMER.get(name, name): value for name, value in values.items()}
