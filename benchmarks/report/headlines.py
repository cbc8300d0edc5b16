"""The few timings that README, page and chart begin with, out of one result file."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.report import tables
from benchmarks.report.results import Result, rows_of
from benchmarks.training.trainers import CAPTURED, FASTEST, OURS

Pair = tuple[float, float]  # microseconds of the other, and of lrfast


def newest(results: Mapping[str, Result]) -> tuple[str, Result]:
    """Returns the newest result file of a CPU that has all of them, with its name."""
    return next(
        (name, result)
        for name, result in results.items()
        if result["device"] == "cpu" and rows_of(result, "steps") and rows_of(result, "sweeps")
    )


def times(result: Result) -> dict[str, Pair]:
    """Returns each pair of times by what is timed, a tie and a loss among them."""
    return {
        "AdamW step, 224 groups": step(result, "AdamW", "lora", 224),
        "AdamW step, ResNet-50 in 107 groups": step(result, "AdamW", "resnet50", 107),
        "AdamW step, one tensor of 100 million": step(result, "AdamW", "hundred_million", 1),
        "clip, AdamW, average, schedule: ViT-S in 75 groups": step(
            result, "whole update", "vit_small", 75
        ),
        "training step of a small transformer": _training(
            result, ("transformer", 4), (FASTEST, OURS)
        ),
        "range test of a CNN, against torch-lr-finder": _sweep(result),
        "captured step of a CNN on a CPU, against the same uncaptured": _training(
            result, ("cnn", 16), (OURS, CAPTURED)
        ),
    }


def cells(theirs: float, ours: float) -> list[str]:
    """Returns both times in milliseconds, and their ratio."""
    ratio = theirs / ours
    return [
        *(f"{time / 1e3:,.3g}" for time in (theirs, ours)),
        f"{ratio:.{2 if ratio < 3 else 1}f}",
    ]


def step(result: Result, work: str, parameters: str, groups: int) -> Pair:
    """Returns the times of torch's fastest implementation and of lrfast."""
    wanted = (work, parameters, groups)
    (row,) = (
        row
        for row in rows_of(result, "steps")
        if (row["work"], row["parameters"], row["groups"]) == wanted
    )
    medians = tables.medians_of(row, "runs_us" if "runs_us" in row else "turns_us")
    return tables.fastest_torch(medians), medians["lrfast"]


def _training(result: Result, case: tuple[str, int], names: tuple[str, str]) -> Pair:
    (row,) = (r for r in rows_of(result, "training") if (r["model"], r["batch"]) == case)
    medians = tables.medians_of(row, "runs_us")
    return medians[names[0]], medians[names[1]]


def _sweep(result: Result) -> Pair:
    (row,) = (
        r for r in rows_of(result, "sweeps") if (r["model"], r["optimizer"]) == ("cnn", "SGD")
    )
    medians = tables.medians_of(row, "turns_us")
    return medians["torch-lr-finder"], medians["lrfast"]
