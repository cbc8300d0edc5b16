"""Final losses with states in 8 bits and in float32: `python -m benchmarks.research.small_states`.

Tasks of the suggestions study, at the learning rates that its newest result file found best, whose
models have tensors large enough to be coded. Both runs of a seed have the same weights and batches.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from typing import Any

import torch

from benchmarks import provenance
from benchmarks.research.suggestions.measure import ALL
from benchmarks.research.suggestions.report import RESULTS as LANDSCAPES
from benchmarks.research.suggestions.report import newest
from benchmarks.research.suggestions.train import STEPS, fit, judge

RESULTS = provenance.RESULTS / "small_states"
TASKS = (
    "digits-mlp-sgd",
    "mnist-autoencoder-adam",
    "module-transformer-adamw",
    "module-words-adam",
    "gru-to-descriptions-adam",
    "wide-digits-mlp-lion",
    "housing-resmlp-nesterov",
    "reviews-lstm-adamw",
    "documentation-lstm-nadam",
    "modules-words-cnn-sgd",
    "autoencoder-to-digits-rmsprop",
    "mnist-wide-adam",
)
# Of Student's t with 1 to 9 degrees of freedom, one-sided at 95 %.
STUDENT = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)


def best_rate(name: str, landscapes: dict[str, Any]) -> float:
    """The peak learning rate with the lowest validation loss."""
    parts = (part for part in landscapes.values() if isinstance(part, dict))
    found = next(part[name] for part in parts if "valid_losses" in part.get(name, {}))
    losses = [math.inf if loss is None else loss for loss in found["valid_losses"]]
    rate: float = found["rates"][losses.index(min(losses))]
    return rate


def train(name: str, rate: float, seed: int, state_dtype: Any) -> tuple[float, float]:
    """The validation loss after a run, and the bytes of state for each parameter."""
    task = ALL[name]
    torch.manual_seed(seed)
    problem = task.make(seed)
    options = {**task.options, "state_dtype": state_dtype, "seed": seed}
    optimizer = task.optimizer(problem.model.parameters(), lr=rate, **options)
    torch.manual_seed(seed)
    finite = fit(problem, optimizer, task.batch_size, seed, STEPS)
    memory = optimizer.memory()
    return judge(problem).valid_loss if finite else math.inf, memory.states / memory.numel


def compare(name: str, rate: float, seeds: int) -> dict[str, Any]:
    """Losses over the seeds, and their mean ratio with an interval at two times 95 %."""
    wide = [train(name, rate, seed, None)[0] for seed in range(seeds)]
    coded = [train(name, rate, seed, "8bit") for seed in range(seeds)]
    logs = [math.log(loss / other) for (loss, _), other in zip(coded, wide, strict=True)]
    margin = STUDENT[seeds - 2] * statistics.stdev(logs) / math.sqrt(seeds)
    middle = statistics.mean(logs)
    return {
        "lr": rate,
        "float32": wide,
        "8bit": [loss for loss, _ in coded],
        "bytes": coded[0][1],
        "ratio": math.exp(middle),
        "interval": [math.exp(middle - margin), math.exp(middle + margin)],
    }


def main() -> int:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.research.small_states", description=__doc__
    )
    parser.add_argument("--tasks", nargs="+", choices=list(ALL), default=TASKS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 11))
    parser.add_argument("--keep", action="store_true", help=f"write a result file to {RESULTS}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    landscapes, found = newest(LANDSCAPES), {}
    for name in arguments.tasks:
        found[name] = row = compare(name, best_rate(name, landscapes), arguments.seeds)
        low, high = row["interval"]
        sys.stdout.write(f"{name:32} {row['ratio']:.3f} [{low:.3f}, {high:.3f}]\n")
        sys.stdout.flush()
    result = {**provenance.facts(), "steps": STEPS, "seeds": arguments.seeds, "tasks": found}
    if arguments.keep:
        provenance.write(result, RESULTS)
    else:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
