"""Saved and resumed, a stage is bit for bit what it is without the interruption."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resuming import CASES, Case, Saved, Saver, fit, left, make_tuner


def by_name(case: Case) -> str:
    return case.name


def resumed(case: Case, path: Path) -> Any:
    """A tuner of a new process, whose random numbers are elsewhere, after it went on."""
    tuner = make_tuner(case, [Saved()])
    for generator in (random.random, np.random.rand, lambda: torch.rand(3)):
        generator()
    tuner.load(path)
    tuner.resume()
    return tuner


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_train_equals_save_load_resume(case: Case, tmp_path: Path) -> None:
    plain = make_tuner(case, [Saved()])
    fit(plain, case)
    wanted = left(plain)
    saving = make_tuner(case, [Saver(tmp_path)])
    fit(saving, case)
    assert left(saving) == wanted  # saving changes nothing
    moments = [f"step{step}" for step in range(1, case.steps() + 1)]
    moments += [f"{corner}{epoch}" for corner in ("begin", "epoch") for epoch in range(3)]
    for moment in moments:
        found = left(resumed(case, tmp_path / f"{moment}.pt"))
        different = [name for name in wanted if found[name] != wanted[name]]
        assert not different, f"{moment}: {different}"


def test_the_cases_bite() -> None:
    """Scalers skip steps in the middle, averages and batch norm move, frozen groups thaw."""
    tuners = {case.name: make_tuner(case) for case in CASES}
    for case in CASES:
        fit(tuners[case.name], case)
    for case in CASES:
        stage = tuners[case.name].history.stages[0]
        assert np.isfinite(stage.losses).all() and stage.outcome == "completed"
        skipped = case.steps() - len(stage.losses)
        assert (skipped >= 2) == (case.options.get("amp") is torch.float16), case.name
        assert bool(np.isnan(stage.rates).any()) == bool(case.freeze_to or case.fit)
