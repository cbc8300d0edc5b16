"""All that an optimizer trains and keeps, as bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def bits(optimizer: Any) -> list[bytes]:
    """All of the parameters and of the states."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    states = [optimizer.state[p] for p in tensors]
    tensors += [s[k] for s in states for k in sorted(s) if isinstance(s[k], Tensor)]
    return [
        t.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors
    ]
