"""A small language model of characters, 20,000 steps with states in float32 and in 8 bits.

It reads the documentation of installed packages. Both runs of a seed have the same weights and
batches.
"""

from __future__ import annotations

import hashlib
import statistics
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

import lrfast
from benchmarks.research.small_states.tasks import CODED, FLOAT32, ratio
from benchmarks.research.suggestions.data import SYMBOLS, as_symbols, docstrings
from benchmarks.research.suggestions.store import Store, hashed

STEPS: Final = 20_000
SEEDS: Final = 5
SIDES: Final = (FLOAT32, CODED)
MODULES: Final = (
    "numpy",
    "numpy.random",
    "scipy.signal",
    "scipy.special",
    "scipy.optimize",
    "scipy.linalg",
    "scipy.ndimage",
    "sklearn.metrics",
    "sklearn.linear_model",
    "sklearn.ensemble",
    "pandas",
    "matplotlib.pyplot",
)
WIDTH, LAYERS, HEADS = 96, 2, 4
LENGTH, ROWS = 32, 8
PEAK, WARM_UP, DECAY = 2e-3, 400, 0.1
EVERY: Final = 250  # steps between points of a curve
BLOCK, HELD = 4096, 10  # every tenth block of characters is for validation
JUDGED: Final = 2048  # windows that a validation loss is a mean over


@dataclass(frozen=True)
class Run:
    """What is measured, as the store names it."""

    name: str = "language"


class Language(nn.Module):
    """A transformer that predicts the next character."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, WIDTH)
        self.places = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, SYMBOLS)
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits, [rows, length, symbols]."""
        hidden = self.embedding(inputs) + self.places
        hidden = self.layers(hidden, mask=self.mask, is_causal=True)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def fingerprint(run: Run) -> str:
    """Returns a hash of all that a run goes through."""
    return hashed((_run, Language), [run.name])


def fill(store: Store) -> None:
    """Trains every side with every seed, as far as the store lacks it; seeds one after another."""
    run = Run()
    present = {(each["side"], each["seed"]) for each in store.records(run, "language")}
    for seed in range(SEEDS):
        for side in SIDES:
            if (side, seed) not in present:
                record = {"kind": "language", "side": side, "seed": seed}
                store.add(run, record | _run(side, seed))


@lru_cache
def text() -> tuple[Tensor, Tensor]:
    """Returns the symbols to train on, and those for validation."""
    blocks = as_symbols("\n".join(docstrings(module) for module in MODULES)).split(BLOCK)
    held = blocks[HELD - 1 :: HELD]
    kept = [block for place, block in enumerate(blocks) if place % HELD != HELD - 1]
    return torch.cat(kept), torch.cat(held)


def _windows(characters: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns windows and, for every place, the character after it, [rows, length]."""
    cut = characters[starts[:, None] + torch.arange(LENGTH + 1)]
    return cut[:, :-1], cut[:, 1:]


def _loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(pair[0]).flatten(0, 1), pair[1].flatten())


def _run(side: str, seed: int) -> dict[str, Any]:
    """Returns mean training losses between the points of a curve, and validation losses there."""
    train, valid = text()
    torch.manual_seed(seed)
    model = Language()
    schedule = lrfast.schedules.cosine_with_warmup(WARM_UP, STEPS)
    state_dtype = "8bit" if side == CODED else None
    optimizer = lrfast.AdamW(
        model.parameters(),
        lr=PEAK,
        weight_decay=DECAY,
        schedule=schedule,
        state_dtype=state_dtype,
        seed=seed,
    )
    draw = torch.Generator().manual_seed(seed)
    starts = torch.linspace(0, len(valid) - LENGTH - 1, JUDGED).long()
    judged = _windows(valid, starts)
    losses, curve, valid_curve = [], [], []
    for step in range(STEPS):
        chosen = torch.randint(len(train) - LENGTH, (ROWS,), generator=draw)
        optimizer.zero_grad()
        loss = _loss(model, _windows(train, chosen))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % EVERY == 0:
            curve.append(round(statistics.mean(losses[-EVERY:]), 5))
        if (step + 1) % (4 * EVERY) == 0:
            with torch.no_grad():
                valid_curve.append(round(_loss(model, judged).item(), 5))
    memory = optimizer.memory()
    return {"train": curve, "valid": valid_curve, "bytes": memory.states / memory.numel}


def entry(store: Store) -> dict[str, Any]:
    """Returns what a result file holds: all seeds that have both sides."""
    runs = {(each["side"], each["seed"]): each for each in store.records(Run(), "language")}
    seeds = [seed for seed in range(SEEDS) if all((side, seed) in runs for side in SIDES)]
    if not seeds:
        return {}
    train, valid = text()
    final = {side: [runs[side, seed]["valid"][-1] for seed in seeds] for side in SIDES}
    return {
        "steps": STEPS,
        "every": EVERY,
        "parameters": sum(each.numel() for each in Language().parameters()),
        "characters": [len(train), len(valid)],
        "sha256": hashlib.sha256(torch.cat([train, valid]).numpy().tobytes()).hexdigest(),
        "seeds": seeds,
        "bytes": {side: runs[side, 0]["bytes"] for side in SIDES},
        "train": {side: [runs[side, seed]["train"] for seed in seeds] for side in SIDES},
        "valid": {side: [runs[side, seed]["valid"] for seed in seeds] for side in SIDES},
        "final": final,
        "ratio": ratio(final[CODED], final[FLOAT32]) if len(seeds) > 1 else None,
    }
