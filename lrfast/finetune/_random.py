"""Random numbers of a training run, taken down as plain numbers and put back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrfast._batches import generators_of
from lrfast.snapshot import GlobalRandom


@dataclass(frozen=True)
class RandomStates:
    """States of the process's generators, and of those that data loaders have of their own.

    Args:
        globals: Those of Python, numpy and torch.
        generators: Those of the loaders, in the loaders' order.
    """

    globals: GlobalRandom
    generators: list[Tensor]

    @classmethod
    def take(cls, loaders: Iterable[object]) -> RandomStates:
        """Return the states as they are now."""
        own = [each.get_state() for loader in loaders for each in generators_of(loader)]
        return cls(GlobalRandom.take(), own)

    def put_back(self, loaders: Iterable[object]) -> None:
        """Set the generators to these states.

        Raises:
            ValueError: If the loaders have another number of generators.
        """
        generators = [each for loader in loaders for each in generators_of(loader)]
        if len(generators) != len(self.generators):
            raise ValueError(
                f"the loaders must have {len(self.generators)} generators as when the checkpoint "
                f"was made, got {len(generators)}"
            )
        for generator, state in zip(generators, self.generators, strict=True):
            generator.set_state(state)
        self.globals.put_back()

    def to_dict(self) -> dict[str, Any]:
        """Return the states as plain numbers, strings, lists and tensors."""
        version, words, gauss = self.globals.python
        return {
            "python": [version, list(words), gauss],
            "numpy": _plain(self.globals.numpy),
            "cpu": self.globals.cpu,
            "cuda": self.globals.cuda,
            "generators": self.generators,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RandomStates:
        """Return what :meth:`to_dict` described; states of GPUs that are not here are left out."""
        version, words, gauss = data["python"]
        cuda = data["cuda"][: torch.cuda.device_count()]
        python = (version, tuple(words), gauss)
        states = GlobalRandom(python, _arrays(data["numpy"]), data["cpu"], cuda)
        return cls(states, data["generators"])


def _plain(value: Any) -> Any:
    """Numpy's state with its arrays as dicts, which torch.load takes without trust."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dtype", "values"}:
        return np.array(value["values"], dtype=value["dtype"])
    return {key: _arrays(item) for key, item in value.items()}
