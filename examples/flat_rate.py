"""Which rate keeps what a network knows: Mikulski's case, with pretrained weights.

R-Net, pretrained to find faces, gets a new head and is trained to find them upside down; first the
head alone, until it is good at it. All layers then go on, at a constant rate: the steepest point of
the range test that found the head's rate, and what rules "steep", "auto" and "flat" make of a
second range test, over all layers. Reading the steepest point off the first plot is what ruins it.

    pip install --no-deps -r requirements/examples.txt
    python examples/flat_rate.py
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
from comparison import Plan, Row, Run, Scores, few_labels
from faces import load_faces
from pretrained import RNet
from report import options, show, write
from rich.console import Console
from torch import nn

import lrfast

TITLE = "R-Net: the rate at the steepest point, and a flat one"
STORY = """\
R-Net with a new head, trained to find faces upside down with 20 labels per class: the head alone
in one cycle, then all layers for as many steps at one constant rate, by the rule that the row
names. The first row is where all of them start. The steepest point of the first plot, which is
right for a new head, ruins a network whose body is pretrained; "flat" does not worsen it. "auto",
which looks for the rate that changes most, worsens it a little."""
LABELS = 20
PLAN = Plan(seeds=(0, 1, 2, 3, 4), steps=60, batch=10, points=100, repeats=3)
QUICK = Plan(seeds=(0,), steps=2, batch=4, points=24)


def run(plan: Plan) -> list[Row]:
    """The scores of the trained head, and of each rate that all layers went on with."""
    rows: dict[str, Row] = {}
    for seed in plan.seeds:
        for name, scores, rate, seconds in run_seed(plan, seed):
            row = rows.setdefault(name, Row(name))
            row.scores.append(scores)
            row.rates.append(rate)
            row.seconds.append(seconds)
    return list(rows.values())


def run_seed(plan: Plan, seed: int) -> list[tuple[str, Scores, str, float]]:
    images, classes = load_faces()
    task = few_labels(images, classes, LABELS, len(classes), seed)
    torch.manual_seed(seed)
    model = RNet()
    model.head = nn.Linear(128, 2)
    head = Run(model, model.children(), task, plan, seed)
    head.tuner.freeze()
    began = time.perf_counter()
    head_test = head.lr_find()
    head.fit("the head alone", 1, head.rates(head_test), began)
    head.tuner.unfreeze()
    full_test = head.lr_find()
    rates = {"all layers, steepest point of the head's test": head_test.suggestions["steep"].lr}
    for rule in ("steep", "auto", "flat"):
        rates[f'all layers, "{rule}" of their own test'] = full_test.suggestions[rule].lr
    for name, rate in rates.items():
        began = time.perf_counter()
        branch = copy.deepcopy(model)
        tuner = Run(branch, branch.children(), task, plan, seed + 1).tuner
        if rate is not None:
            tuner.fit(1, lrfast.schedules.constant(), rate)
        shown = "declined" if rate is None else f"{rate:.1e}"
        head.stages.append((name, tuner.validate(), shown, time.perf_counter() - began))
    return head.stages


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    console = Console()
    rows = run(QUICK if chosen.is_quick else PLAN)
    show(rows, TITLE, console)
    if chosen.report is not None:
        write(chosen.report, TITLE, STORY, rows)


if __name__ == "__main__":
    main()
