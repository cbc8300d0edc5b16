"""Who takes part in the benchmark of small optimizer states, and the check that their steps agree.

AdamW all: states in float32, bfloat16, 8 and 4 bits, of float32 and of bfloat16 parameters, with
and without the bits that make wider weights of these. Their weights differ by roundings, so that
what is compared is how far three steps have moved them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

import lrfast
from benchmarks.speed.implementations import Contender, Start, reason_of
from lrfast.tools.bench._contenders import bytes_moved

REFERENCE = "torch-fused"
HYPERS = {"lr": 1e-2, "weight_decay": 0.01}
FACTORS = (1.0, 0.1, 0.1)  # of the gradients in the steps that are compared: betas tell then
# Mean difference of the moves over their mean: 4 bits and bfloat16 weights round by up to 20 %.
MOST = 0.25
FLOAT, BF16 = torch.float32, torch.bfloat16
CODE = 1 + 1 / 256  # bytes of a state in 8 bits


@dataclass(frozen=True)
class Implementation:
    """An AdamW, the dtype of its parameters, and the bytes of its states for each of them.

    Bits beside a bfloat16 weight are states, too: one byte for 24 bits in all, two for 32.
    """

    make: Callable[..., torch.optim.Optimizer]
    states: float
    dtype: torch.dtype = FLOAT
    compiled: bool = False  # anew for every shape, for many seconds
    slow: bool = False  # takes part in every fourth round

    @property
    def moved(self) -> float:
        """Bytes that a step reads and writes for each parameter."""
        return bytes_moved(self.dtype.itemsize, 0) + 2 * self.states


def _of(package: str, name: str, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    def make(params: list[Tensor], **hypers: Any) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = getattr(import_module(package), name)(
            params, **options, **hypers
        )
        return made

    return make


_TORCH = partial(torch.optim.AdamW, fused=True)
_CODED = partial(lrfast.AdamW, state_dtype="8bit")
_KAHAN = {"betas": (0.9, 0.999), "eps": 1e-8, "kahan_sum": True}  # its own defaults are others
IMPLEMENTATIONS: dict[str, Implementation] = {
    REFERENCE: Implementation(_TORCH, 8),
    "lrfast": Implementation(lrfast.AdamW, 8),
    "lrfast, bf16": Implementation(partial(lrfast.AdamW, state_dtype=BF16), 4),
    "lrfast, 8bit": Implementation(_CODED, 2 * CODE),
    "torchao, 8bit": Implementation(_of("torchao.optim", "AdamW8bit"), 2, compiled=True, slow=True),
    "torchao, 4bit": Implementation(_of("torchao.optim", "AdamW4bit"), 1, compiled=True, slow=True),
    "bitsandbytes, 8bit": Implementation(_of("bitsandbytes.optim", "AdamW8bit"), 2, slow=True),
    "flashoptim": Implementation(_of("flashoptim", "FlashAdamW"), 2),
    "torch-fused, bf16 weights": Implementation(_TORCH, 4, BF16),
    "lrfast, bf16 weights": Implementation(lrfast.AdamW, 4, BF16),
    "lrfast, bf16 weights, 8bit": Implementation(_CODED, 2 * CODE, BF16),
    "lrfast, bf16 weights, 24bit master, 8bit": Implementation(
        partial(_CODED, master="24bit"), 1 + 2 * CODE, BF16
    ),
    "lrfast, bf16 weights, 32bit master": Implementation(
        partial(lrfast.AdamW, master="32bit", state_dtype=FLOAT), 2 + 8, BF16
    ),
    "optimi, bf16 weights, Kahan": Implementation(
        _of("optimi", "AdamW", **_KAHAN), 6, BF16, slow=True
    ),
}
NAMES = tuple(IMPLEMENTATIONS)


def participants(
    start: Start, compiled: bool = True, slow: bool = True
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Makes contenders, of whom those that cannot step here, or step otherwise, are refused."""
    grads = {dtype: [grad.to(dtype, copy=True) for grad in start.grads] for dtype in (FLOAT, BF16)}
    found: dict[str, Contender] = {}
    refused: dict[str, str] = {}
    moves: list[Tensor] = []
    for name, entry in IMPLEMENTATIONS.items():
        if entry.compiled > compiled or entry.slow > slow:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                contender = _contender(entry, start, grads[entry.dtype])
                for factor in FACTORS:
                    for grad, given in zip(grads[entry.dtype], start.grads, strict=True):
                        grad.copy_(given).mul_(factor)
                    contender.step()
            moved = (
                p.detach().float() - w for p, w in zip(contender.params, start.weights, strict=True)
            )
            if name == REFERENCE:
                moves = list(moved)
            else:
                _compare(moved, moves)
            found[name] = contender
        except Exception as error:  # whatever keeps a library from running here
            refused[name] = reason_of(error)
    for name in ("lrfast", "lrfast, bf16", "lrfast, 8bit"):
        assert name in found, refused.get(name)
    return found, refused


def _contender(entry: Implementation, start: Start, grads: list[Tensor]) -> Contender:
    """Returns an implementation on weights of its own; the gradients are read only."""
    params: list[Tensor] = []
    for weight, grad in zip(start.weights, grads, strict=True):
        param = torch.nn.Parameter(weight.to(entry.dtype, copy=True))
        param.grad = grad
        params.append(param)
    optimizer = entry.make(params, **HYPERS)
    return Contender(params, optimizer, optimizer.step)


def _compare(moves: Any, expected: list[Tensor]) -> None:
    """Raises unless weights have moved as the reference's, but for roundings."""
    off = whole = 0.0
    for move, other in zip(moves, expected, strict=True):
        off += float((move - other).abs().sum())
        whole += float(other.abs().sum())
    share = off / whole
    assert share < MOST, f"its weights move otherwise: by {share:.0%} of the reference's moves"
