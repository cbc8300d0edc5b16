"""Muon and AdamW in one optimizer against torch's two: `python -m benchmarks.speed.muon`.

Six transformer layers on one thread, in turns, by the processor's time. The products are most of a
step, so that the rest is timed without them, too. Runs for a minute.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import nn
from torch.optim import _muon as torch_muon

import lrfast
from lrfast.optim._newton_schulz import NewtonSchulz

WIDTHS, TOKENS, ROUNDS = (64, 128, 256, 384), 2000, 11


class Model(nn.Module):
    """A language model with gradients."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width) for _ in range(6)
        )
        self.lm_head = nn.Linear(width, TOKENS, bias=False)
        for param in self.parameters():
            param.grad = 0.01 * torch.randn_like(param)


def steps(width: int) -> dict[str, Callable[[], object]]:
    """Returns the step of each."""
    groups = lrfast.muon_groups(Model(width), 0.02, 3e-4, weight_decay=0.1)
    ours = lrfast.Muon(groups)
    apart: dict[str, list[dict[str, object]]] = {"muon": [], "adamw": []}
    for group in lrfast.muon_groups(Model(width), 0.02, 3e-4, weight_decay=0.1):
        kept = {name: group[name] for name in ("params", "lr", "weight_decay")}
        apart[group["rule"]].append(kept)
    muon = torch.optim.Muon(apart["muon"])
    adamw = torch.optim.AdamW(apart["adamw"], fused=True)
    return {"lrfast": ours.step, "torch": lambda: (muon.step(), adamw.step())}


def ratio(calls: dict[str, Callable[[], object]], rounds: int) -> float:
    """Returns torch's median over lrfast's, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            begin = time.thread_time()
            call()
            times[name].append(time.thread_time() - begin)
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    return medians["torch"] / medians["lrfast"]


def main() -> int:
    """Prints the table."""
    torch.set_num_threads(1)
    lines = ["| torch / lrfast | whole step | without the products |", "|---|---|---|"]
    for width in WIDTHS:
        calls = steps(width)
        whole = ratio(calls, ROUNDS)
        with (
            patch.object(torch_muon, "_zeropower_via_newtonschulz", lambda grad, *_: grad),
            patch.object(NewtonSchulz, "__call__", lambda *_: None),
        ):
            rest = ratio(calls, 5 * ROUNDS)
        lines.append(f"| width {width} | {whole:.2f} | {rest:.2f} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
