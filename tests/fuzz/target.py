"""What a target of fuzzing is, and what is checked of every case."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .mutations import mutate

# What loaders raise for what they refuse; a KeyError, an OverflowError, ... is a finding.
REFUSALS = (TypeError, ValueError)


class Finding(AssertionError):
    """Something that must not happen."""


class Target(ABC):
    """Loads mutated data, and says whether they were accepted.

    Args:
        path: A file that it may use.
    """

    name: ClassVar[str]
    share: ClassVar[float]  # of all cases
    longest: ClassVar[int] = 12_000  # message: one may name what is long by itself

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def case(self, random: Random) -> bool:
        """Try one case; True where the data were accepted."""

    def attempt(
        self, load: Callable[[], Any], state: Callable[[], Any] = lambda: None
    ) -> tuple[bool, Any]:
        """Load, and check that a refusal says why and changes nothing."""
        before = state()
        try:
            loaded = load()
        except REFUSALS as error:
            message = str(error)
            if not message or len(message) > self.longest:
                raise Finding(f"a message of {len(message)} characters") from error
            if state() != before:
                raise Finding("a refused load has changed something") from error
            return False, None
        return True, loaded


def mutated(random: Random, value: Any) -> Any:
    """The value with one to three places changed."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = mutate(random, value)
    return value


def bits(value: Any) -> Any:
    """The value in a form that == compares bit for bit, and that costs little."""
    if isinstance(value, Tensor):
        memory = value.detach().reshape(-1).view(torch.uint8)
        return value.dtype, value.shape, memory.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return [(bits(key), bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return repr(value)
