"""Fills the store, draw by draw: the methods, then the choices, then the recipe's variants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from torch import nn

from benchmarks import provenance
from benchmarks.research.recipe import choices
from benchmarks.research.recipe.choices import CHOICES, swapped
from benchmarks.research.suggestions import store
from benchmarks.research.suggestions.store import Store
from lrfast import demo
from lrfast.demo import Digits, Task

CHOSEN_ON = range(5)  # the draws of the labels that the defaults were chosen on
DRAWS = range(10)

RECIPE = "recipe, defaults"
BASELINES = ("one uniform rate", "head only", "from scratch")
VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "recipe, spread=1": {"spread": 1.0},
        'recipe, top="head"': {"top": "head"},
        'recipe, epochs=(3, 3), top="head", spread=10': {
            "epochs": (3, 3),
            "top": "head",
            "spread": 10.0,
        },
    }
)


@dataclass(frozen=True)
class Half:
    """The digits that are fine-tuned on, after the others: what the store keeps a file of."""

    name: str
    title: str
    load: Callable[[], Digits]


def _swapped_digits() -> Digits:
    return swapped(demo.load_digits())


HALVES = (
    Half("demo", "digits 5 to 9", demo.load_digits),
    Half("reversed", "digits 0 to 4", _swapped_digits),
)
Found = Iterator[tuple[str, float]]


def fingerprint(half: Half) -> str:
    """Returns a hash of the choices and of lrfast as it is committed, which the recipe is part of.

    Without these a recipe that has changed would keep the accuracy of the old one.
    """
    entries = (choices.accuracies, methods, variants, half.load)
    return store.hashed(entries, [provenance.tree("lrfast"), repr(CHOICES), repr(dict(VARIANTS))])


def methods(digits: Digits, body: nn.Module, draw: int) -> Found:
    """Yields what the demo compares: the recipe and three baselines in as many steps."""
    for name, found in demo.compare(digits, body, [draw]).items():
        yield RECIPE if name == "recipe" else name, found[0]


def chosen(digits: Digits, body: nn.Module, draw: int) -> Found:
    """Yields the stages that the defaults were chosen from."""
    yield from choices.accuracies(body, demo.make_task(digits, draw), draw)


def variants(digits: Digits, body: nn.Module, draw: int) -> Found:
    """Yields the recipe with other arguments than its defaults."""
    task = demo.make_task(digits, draw)
    for name, options in VARIANTS.items():
        yield name, _recipe(body, task, draw, options)


def _recipe(body: nn.Module, task: Task, draw: int, options: Mapping[str, Any]) -> float:
    tuner, _ = demo.fine_tune(demo.transplant(body, draw), task, draw)
    tuner.recipe(**{"epochs": demo.EPOCHS} | dict(options)).run()
    accuracy: float = tuner.history.epochs[-1]["accuracy"]
    return accuracy


PARTS: Final[Mapping[str, tuple[Callable[[Digits, nn.Module, int], Found], range]]] = (
    MappingProxyType(
        {
            "methods": (methods, DRAWS),
            "choices": (chosen, CHOSEN_ON),
            "variants": (variants, DRAWS),
        }
    )
)


def fill(
    folder: Path,
    parts: Iterable[str] = tuple(PARTS),
    halves: Sequence[Half] = HALVES,
    draws: range = DRAWS,
) -> Iterator[str]:
    """Measures what the store lacks, and yields the name of every part of a draw that is there."""
    kept = Store(folder, fingerprint)
    for part in parts:
        run, wanted = PARTS[part]
        for draw in (draw for draw in wanted if draw in draws):
            for half in halves:
                if draw not in {found["draw"] for found in kept.records(half, part)}:
                    digits, body = _pretrained(half)
                    accuracies = dict(run(digits, body, draw))
                    kept.add(half, {"kind": part, "draw": draw, "accuracies": accuracies})
                yield f"{part}, {half.name}, draw {draw}"


@lru_cache
def _pretrained(half: Half) -> tuple[Digits, nn.Module]:
    digits = half.load()
    return digits, demo.pretrain(digits)[0].model


def collect(
    folder: Path, parts: Iterable[str] = tuple(PARTS), halves: Sequence[Half] = HALVES
) -> dict[str, Any]:
    """Returns what a result file holds: accuracies by part, half and name, one per draw.

    Each part has the facts of where it was measured, for one may be measured later than another.
    """
    kept = Store(folder, fingerprint)
    facts = provenance.facts()
    return facts | {
        "titles": {half.name: half.title for half in halves},
        "chosen_on": list(CHOSEN_ON),
        "parts": {
            part: facts | {"accuracies": {half.name: _by_name(kept, half, part) for half in halves}}
            for part in parts
        },
    }


def _by_name(kept: Store, half: Half, part: str) -> dict[str, list[float]]:
    draws = sorted(kept.records(half, part), key=lambda record: record["draw"])
    return {
        name: [record["accuracies"][name] for record in draws] for name in draws[0]["accuracies"]
    }
