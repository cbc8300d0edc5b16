"""Random states of a training run, saved as plain numbers and restored."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrfast._utils.validation import (
    check_dict,
    check_finite,
    check_int,
    check_list,
    check_str,
    check_tensor,
)
from lrfast.training._data import generators_of
from lrfast.training._snapshot import GlobalRandom

_CUDA_BYTES = 16  # of the state of a GPU's generator, which only a GPU can check


def reseed(repeat: int, loaders: Iterable[object]) -> None:
    """Give a repeated run random numbers of its own; a snapshot restores the old ones."""
    seed = (torch.initial_seed() + repeat) % 2**63
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    for loader in loaders:
        for generator in generators_of(loader):
            generator.manual_seed((generator.initial_seed() + repeat) % 2**63)


@dataclass(frozen=True)
class RandomStates:
    """States of the process's generators, and of the data loaders' own, in the loaders' order."""

    globals: GlobalRandom
    generators: list[Tensor]

    @classmethod
    def take(cls, loaders: Iterable[object]) -> RandomStates:
        """Return the states as they are now."""
        own = [each.get_state() for loader in loaders for each in generators_of(loader)]
        return cls(GlobalRandom.take(), own)

    def restore(self, loaders: Iterable[object]) -> None:
        """Set the generators to these states; ValueError if their number is another one."""
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
        """Return the states of :meth:`to_dict`, without those of GPUs that are not here."""
        check_dict("random states", data, ["python", "numpy", "cpu", "cuda", "generators"])
        version, words, gauss = check_list("python's random state", data["python"], least=3)
        if gauss is not None:  # Python itself takes anything there
            check_finite("python's random state", gauss)
        cuda = [_bytes(each) for each in check_list("states of GPUs", data["cuda"])]
        states = GlobalRandom(
            (version, tuple(check_list("words", words)), gauss),
            _arrays(data["numpy"]),
            _bytes(data["cpu"]),
            cuda[: torch.cuda.device_count()],
        )
        generators = [_bytes(each) for each in check_list("generators", data["generators"])]
        _try(states, generators)
        return cls(states, generators)


def _plain(value: Any) -> Any:
    """Numpy's state with its arrays as dicts, which torch.load takes with weights_only=True."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dtype", "values"}:
        words = [
            check_int("words", each, most=2**64 - 1)
            for each in check_list("words", value["values"])
        ]
        dtype = check_str("dtype", value["dtype"], ("uint32", "uint64"))
        return np.array(words, dtype="uint64").astype(dtype)
    return {key: _arrays(item) for key, item in value.items()}


def _bytes(value: Any) -> Tensor:
    return check_tensor("a generator's state", value, torch.uint8, 1)


def _try(states: GlobalRandom, generators: list[Tensor]) -> None:
    """Set spare generators to the states first, so that the real ones cannot fail half way."""
    try:
        random.Random().setstate(states.python)
        _check_places(check_dict("numpy's random state", states.numpy))
        bits = type(np.random.get_bit_generator())  # type: ignore[attr-defined]
        np.random.RandomState(bits()).set_state(states.numpy)
        for state in (states.cpu, *generators):
            if len(state) != _CUDA_BYTES:
                torch.Generator().set_state(state)
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"random states must be those of generators, got others: {str(error)[:200]}"
        ) from error


def _check_places(state: dict[str, Any]) -> None:
    """Check the positions of numpy's generators in their memory, which numpy does not."""
    inner = check_dict("numpy's random state", state.get("state"))
    for holder, name, most in ((inner, "pos", 624), (state, "buffer_pos", 4)):
        if name in holder:
            check_int(name, holder[name], most=most)
