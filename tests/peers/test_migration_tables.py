"""The tables of docs/migration: our calls run, and values are the same where a row says so.

A row is a test. Its names come from the page's first block. A difference that starts with "same
values" or "other values" is checked against the library itself; Keras, which is not installed, is
restated by its formulas.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from reference import keras_schedules
from torch.optim.lr_scheduler import LRScheduler
from trainers import load, quieten

from lrfast.schedules import Schedule

FOLDER = Path(__file__).parents[2] / "docs" / "migration"
STEPS = 320
RATE = 0.1
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
CLAIM = re.compile(r"(same|other) values(?: up to step (\d+))?")
TOLERANCES = {"fastai": 2e-8}  # it computes positions in float32
# What a page needs: a library, and what of ours it imports.
NEEDED = {
    "fastai": ("fastai", "lrfast.integrations.fastai"),
    "lightning": ("lightning", "lrfast.integrations.lightning"),
    "timm": ("timm", "lrfast.integrations.timm"),
}


class Row(NamedTuple):
    """A row of a table."""

    page: str
    number: int
    theirs: str
    ours: str
    difference: str
    stride: int  # of our steps per step of theirs


def rows_of(path: Path) -> list[Row]:
    rows: list[Row] = []
    header: list[str] = []
    for line in path.read_text().splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not header:
            header = cells
        elif set(line) - set("|-: "):
            assert len(cells) == 3 and header[1] == "lrfast", line
            stride = 10 if "per epoch" in header[0] else 1
            rows.append(Row(path.stem, len(rows), *cells, stride))
    return rows


ROWS = [row for path in sorted(FOLDER.glob("*.md")) for row in rows_of(path)]


def namespace_of(page: str) -> dict[str, Any]:
    names: dict[str, Any] = {"print": lambda *values: None}
    torch.manual_seed(0)
    block = BLOCK.search((FOLDER / f"{page}.md").read_text())
    assert block
    exec(block[1], names)
    return names


def run(code: str, names: dict[str, Any]) -> Any:
    """The value of an expression; None for statements."""
    try:
        compiled = compile(code, "cell", "eval")
    except SyntaxError:
        exec(code, names)
        return None
    return eval(compiled, names)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_tables_are_found() -> None:
    assert {row.page for row in ROWS} == {p.stem for p in FOLDER.glob("*.md")} - {"index"}
    assert len(ROWS) > 120
    claims = [row for row in ROWS if CLAIM.match(row.difference)]
    assert len(claims) > 50


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.page}-{row.number}")
def test_our_call_runs(row: Row) -> None:
    codes = CODE.findall(row.ours)
    assert codes or row.ours.startswith("nothing"), row
    names = namespace_of(row.page)
    if row.page in NEEDED:
        library, ours = NEEDED[row.page]
        if any(name in row.ours for name in theirs_for_us(row.page)):
            load(library)
            names |= vars(importlib.import_module(ours))
            quieten()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for code in codes:
            run(code, names)


def theirs_for_us(page: str) -> tuple[str, ...]:
    """Names of our integration that a page's cells use."""
    return {
        "fastai": ("opt_func(", "integrations.fastai"),
        "lightning": ("Callback(", "ClipInStep(", "StepMonitor(", "GradualUnfreezing("),
        "timm": ("create_optimizer_v2(", "create_schedule(", "register("),
    }[page]


# Where the classes are that the columns of others name; those of our side and of Python are not.
MODULES = {
    "torch_schedulers": ("torch.optim.lr_scheduler", "torch.optim.swa_utils"),
    "fastai": (
        *("fastai.learner", "fastai.optimizer", "fastai.callback.schedule", "fastai.callback.fp16"),
        *("fastai.callback.training", "fastai.callback.tracker"),
    ),
    "lightning": (
        *("lightning.pytorch", "lightning.pytorch.callbacks", "lightning.pytorch.tuner"),
        "torch.optim.lr_scheduler",
    ),
    "timm": ("timm.scheduler", "timm.optim", "timm.utils"),
}


@pytest.mark.parametrize("page", MODULES)
def test_their_names_exist(page: str) -> None:
    if page in NEEDED:
        load(NEEDED[page][0])
    modules = [importlib.import_module(name) for name in MODULES[page]]
    cells = " ".join(code for row in ROWS if row.page == page for code in CODE.findall(row.theirs))
    names = set(re.findall(r"(?<![.\w])([A-Z]\w+)\(", cells)) - {"SGD", "AdamW"}
    assert len(names) > 5
    missing = {name for name in names if not any(hasattr(module, name) for module in modules)}
    assert not missing
    if page == "fastai":
        learner = modules[0].Learner
        called = set(re.findall(r"learn\.(\w+)\(", cells))
        assert len(called) > 10 and not {name for name in called if not hasattr(learner, name)}


CLAIMS = [row for row in ROWS if CLAIM.match(row.difference)]


@pytest.mark.parametrize("row", CLAIMS, ids=lambda row: f"{row.page}-{row.number}")
def test_values_are_what_the_row_says(row: Row) -> None:
    ours = run(CODE.findall(row.ours)[0], namespace_of(row.page))
    assert isinstance(ours, Schedule)
    theirs = READERS[row.page](CODE.findall(row.theirs)[0])
    theirs = [np.repeat(channel, row.stride)[:STEPS] for channel in theirs]
    steps = np.arange(len(theirs[0]))
    channels = [RATE * ours.values(steps)]
    momenta = ours.momentum(steps)
    if momenta is not None and len(theirs) > 1:
        channels.append(momenta)
    gaps = np.max([np.abs(o - t) for o, t in zip(channels, theirs, strict=False)], axis=0)
    claim = CLAIM.match(row.difference)
    assert claim
    until = STEPS if claim[2] is None else int(claim[2]) + 1
    if claim[1] == "other":
        assert gaps.max() > 1e-4
        return
    np.testing.assert_allclose(gaps[:until], 0.0, atol=TOLERANCES.get(row.page, 1e-12))
    if until < len(gaps):
        assert gaps[until:].max() > 1e-9 or "held" not in row.difference


# What the libraries do, [steps] each: rates, and momenta where there are any.


def torch_values(code: str) -> list[Sequence[float]]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE, momentum=0.9)
    names = {**vars(torch.optim.lr_scheduler), "optimizer": optimizer}
    rates, momenta = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = eval(code, names)
        assert isinstance(scheduler, LRScheduler)
        for step in range(STEPS):
            if step:
                try:
                    scheduler.step()
                except ValueError:  # OneCycleLR, past its end
                    break
            rates.append(optimizer.param_groups[0]["lr"])
            momenta.append(optimizer.param_groups[0]["momentum"])
    return [rates, momenta]


def fastai_values(code: str) -> list[Sequence[float]]:
    """A function of the position, over 100 steps."""
    load("fastai")
    schedule = importlib.import_module("fastai.callback.schedule")
    f = eval(code, {**vars(schedule), "np": np})
    return [[float(f(step / 100)) for step in range(100)]]


def timm_values(code: str) -> list[Sequence[float]]:
    load("timm")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    names = {**vars(importlib.import_module("timm.scheduler")), "optimizer": optimizer}
    scheduler = eval(code, names)
    rates = []
    for step in range(STEPS):
        scheduler.step(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return [rates]


def keras_values(code: str) -> list[Sequence[float]]:
    schedule = eval(code, vars(keras_schedules).copy())
    return [[schedule(step) for step in range(STEPS)]]


READERS: dict[str, Callable[[str], list[Sequence[float]]]] = {
    "torch_schedulers": torch_values,
    "fastai": fastai_values,
    "timm": timm_values,
    "keras": keras_values,
}
