"""Progress bars: learning rate and smoothed loss, a few times a second, in terminals only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from tiny import OPTIMIZERS, OURS, cross_entropy, make_batches, make_model

import lrfast
from lrfast._utils import progress as _progress
from lrfast._utils.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time that the bar sees."""
    now = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_numbers_are_worked_out_a_few_times_per_second(terminal: Any, clock: list[float]) -> None:
    asked: list[int] = []
    with closing(Progress("trying", 100, done=10)) as bar:
        for step in range(11, 101):
            clock[0] += 0.01
            bar.show(step, lambda step=step: {"step": asked.append(step) or str(step)})
    assert len(asked) == 5 and asked[0] == 11 and asked[-1] == 100
    shown = terminal.take()
    assert all(f"step={step}" in shown for step in asked)
    assert "trying  11%" in shown and "100/100" in shown and ", step=" in shown


def test_a_log_gets_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """pytest's stderr is no terminal; nothing is worked out either."""
    with closing(Progress("trying", 10)) as bar:
        bar.show(1, lambda: pytest.fail("asked for numbers"))
    assert capsys.readouterr() == ("", "")


def test_it_can_be_left_out(terminal: Any) -> None:
    with closing(Progress("trying", 10, shown=False)) as bar:
        bar.show(1, lambda: pytest.fail("asked for numbers"))
    assert terminal.take() == ""


@pytest.mark.parametrize(
    ("module", "is_terminal", "is_interactive"),
    [("io", True, True), ("io", False, False), ("ipykernel.iostream", False, True)],
    ids=["terminal", "pipe", "notebook"],
)
def test_terminals_and_notebooks_are_interactive(
    module: str, is_terminal: bool, is_interactive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = type("Stream", (), {"isatty": lambda self: is_terminal, "__module__": module})
    monkeypatch.setattr(sys, "stderr", streams())
    monkeypatch.setattr(sys, "stdout", streams())
    assert _progress._is_interactive() == is_interactive
    # A notebook shows its stderr as it shows errors.
    assert _progress._stream() is (sys.stdout if module.startswith("ipykernel") else sys.stderr)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert not _progress._is_interactive()


def test_a_race_is_shown(terminal: Any) -> None:
    model = make_model()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    result = lrfast.lr_find(model, optimizer, make_batches(5), cross_entropy, num_iter=30, verify=6)
    shown = terminal.take()
    assert result.race is not None
    for candidate in result.race.candidates:
        assert f"race, lr {candidate.lr:.1e}" in shown
    assert "6/6" in shown and "loss=" in shown


def test_a_retest_is_shown(terminal: Any) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(4, 2), torch.randn(4, 1))] * 5
    mse_loss = torch.nn.functional.mse_loss
    retest = lrfast.Retest(model, optimizer, batches, mse_loss, every=1, num_iter=10)
    retest.epoch_end()
    assert "range test" in terminal.take()


@pytest.mark.parametrize("kind", OURS)
def test_a_range_test_shows_rate_and_smoothed_loss(kind: str, terminal: Any) -> None:
    model = make_model()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for progress in (False, True):
        result = lrfast.lr_find(
            model, optimizer, make_batches(5), cross_entropy, num_iter=5, progress=progress
        )
        shown = terminal.take()
        assert bool(shown) == progress
    assert "range test" in shown and "lr=1.0e+01" in shown and "5/5" in shown
    assert f"loss={result.smoothed[-1]:.4g}" in shown
    assert result.seconds > 0
