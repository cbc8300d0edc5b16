"""Tasks whose models are half, with and without the bits that make wider weights of these.

Those of the tasks that have tensors for states in 8 bits. All runs of a seed have the same batches
and the same weights, rounded to bfloat16 or float16. What the others are compared with is `EXACT`,
whose weights are float32: the model computes with these, rounded. In float16 losses are scaled.

Which tasks are trained is settled before any is: those that take the shortest steps, in turns of
`TURN` seeds, as far as the time goes that a run is given.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Collection
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks import provenance
from benchmarks.research.small_states.tasks import best_rate, outcome, ratio
from benchmarks.research.suggestions.measure import ALL
from benchmarks.research.suggestions.report import RESULTS as LANDSCAPES
from benchmarks.research.suggestions.report import newest
from benchmarks.research.suggestions.store import Store, hashed
from benchmarks.research.suggestions.tasks import Task
from benchmarks.research.suggestions.train import STEPS, Problem, batches, update

HALVES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}
EXACT: Final = "32bit, float32"
MASTERS: Final[dict[str, dict[str, Any]]] = {  # weights and states
    EXACT: {"master": "32bit", "state_dtype": torch.float32},
    "24bit, float32": {"master": "24bit", "state_dtype": torch.float32},
    "24bit, 8bit": {"master": "24bit", "state_dtype": "8bit"},
}
TURN, TURNS = 5, 4  # seeds
TIMED: Final = 5  # updates, of whom the first does not count


def sides(half: str) -> dict[str, dict[str, Any]]:
    """Returns options by what weights and states are, weights without more bits last."""
    return MASTERS | {f"{half}, float32": {"state_dtype": torch.float32}}


class Half(nn.Module):
    """A model that computes in a half dtype from inputs of any, with outputs in float32."""

    def __init__(self, body: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.body, self.dtype = body.to(dtype), dtype
        self.scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)

    def forward(self, inputs: Tensor) -> Tensor:
        given = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        outputs: Tensor = self.body(given).float()
        if outputs.requires_grad:  # what it makes of the loss, it makes of the loss's gradient
            outputs.register_hook(self.scaler.scale)
        return outputs


class Scaled:
    """The optimizer of a half model, whose steps its scaler takes."""

    def __init__(self, optimizer: Any, model: Half) -> None:
        self._optimizer, self._scaler = optimizer, model.scaler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self) -> None:
        """Takes a step, unless gradients are infinite, and adapts the scale."""
        self._scaler.step(self._optimizer)
        self._scaler.update()


def coded(results: dict[str, Any]) -> list[str]:
    """Returns the names of the tasks that have tensors for states in 8 bits."""
    return [name for name, each in results["tasks"].items() if "ratios" in each]


def fingerprint(task: Task) -> str:
    """Returns a hash of all that the task and its runs go through."""
    kept = {name: sorted(map(str, options.items())) for name, options in MASTERS.items()}
    parts = [task.optimizer.__name__, repr(sorted(task.options.items())), repr(task.batch_size)]
    return hashed((task.make, _run, _begin), [*parts, repr(kept)])


def fill(names: Collection[str], store: Store, half: str, seconds: float) -> None:
    """Times a few steps of every task, then trains them, those with the shortest steps first.

    No training begins after the seconds have passed.
    """
    end = time.monotonic() + seconds
    for name in names:
        if not store.records(ALL[name], "cost"):
            store.add(ALL[name], {"kind": "cost"} | _cost(ALL[name], half))
    costs = {name: store.records(ALL[name], "cost")[0]["seconds"] for name in names}
    order = sorted((cost, name) for name, cost in costs.items() if cost is not None)
    for turn in range(TURNS):
        for _, name in order:
            task = ALL[name]
            rate = best_rate(name, newest(LANDSCAPES))
            present = {(run["side"], run["seed"]) for run in store.records(task, "masters")}
            for seed in range(TURN * turn, TURN * (turn + 1)):
                for side in sides(half):
                    if time.monotonic() > end:
                        return
                    if (side, seed) not in present:
                        record = {"kind": "masters", "side": side, "seed": seed, "rate": rate}
                        store.add(task, record | _run(task, half, rate, seed, side))


def _cost(task: Task, half: str) -> dict[str, Any]:
    """Returns the median seconds of an update, or why there is none in that dtype."""
    problem = task.make(0)
    stream = batches(problem.train, task.batch_size, 0)
    found = []
    try:
        problem, optimizer = _begin(task, half, problem, 0.0, 0, EXACT)
        for _ in range(TIMED):
            began = time.perf_counter()
            update(problem, optimizer, next(stream))
            found.append(time.perf_counter() - began)
    except (RuntimeError, TypeError, ValueError) as error:  # of torch, or of the optimizer
        return {"seconds": None, "why": str(error).partition("\n")[0]}
    return {"seconds": statistics.median(found[1:])}


def _run(task: Task, half: str, rate: float, seed: int, side: str) -> dict[str, Any]:
    """Returns the validation loss after a training, and the bytes of state for each parameter."""
    torch.manual_seed(seed)
    problem, optimizer = _begin(task, half, task.make(seed), rate, seed, side)
    return outcome(task, problem, optimizer, seed)


def _begin(
    task: Task, half: str, problem: Problem, rate: float, seed: int, side: str
) -> tuple[Problem, Any]:
    """Returns the problem with its model in that dtype, and an optimizer of its weights."""
    model = Half(problem.model, HALVES[half])
    parameters = [each for each in model.parameters() if each.requires_grad]
    options = {**task.options, **sides(half)[side], "seed": seed}
    optimizer = task.optimizer(parameters, lr=rate, **options)
    return dataclasses.replace(problem, model=model), Scaled(optimizer, model)


def collect(names: Collection[str], store: Store, half: str) -> dict[str, Any]:
    """Returns what a result file holds."""
    entries = {name: _entry(ALL[name], store, half) for name in names}
    return provenance.facts() | {"steps": STEPS, "half": half, "tasks": entries}


def _entry(task: Task, store: Store, half: str) -> dict[str, Any]:
    """Returns the losses of all seeds that have every side, if these are a turn's at least."""
    (cost,) = store.records(task, "cost")
    entry: dict[str, Any] = {key: cost[key] for key in ("seconds", "why") if key in cost}
    names = sides(half)
    runs = {(run["side"], run["seed"]): run for run in store.records(task, "masters")}
    seeds = [seed for seed in range(TURN * TURNS) if all((side, seed) in runs for side in names)]
    if len(seeds) < TURN:
        return entry
    losses = {side: [runs[side, seed]["valid_loss"] for seed in seeds] for side in names}
    return entry | {
        "rate": runs[EXACT, 0]["rate"],
        "bytes": {side: runs[side, 0]["bytes"] for side in names},
        "losses": losses,
        "ratios": {s: ratio(losses[s], losses[EXACT]) for s in names if s != EXACT},
    }
