"""Stages and histories as tables: on the screen while they train, printed, and in a REPL."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lrfast
from lrfast import History, Stage
from lrfast.finetune._epoch_table import epoch_table
from lrfast.groups import LayerGroups


def make_tuner(metrics: int = 1, **options: Any) -> lrfast.FineTuner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(5)]
    named = {f"accuracy {i}": lrfast.accuracy for i in range(metrics)}
    loss_fn = nn.functional.cross_entropy
    return lrfast.FineTuner(model, batches, batches, loss_fn=loss_fn, metrics=named, **options)


def drawn(terminal: Any) -> list[str]:
    """What stays of the lines when the bar is gone."""
    lines = re.split(r"[\r\n]", terminal.take())
    return [line for line in lines if re.match(r"epoch|\s+\d+ ", line)]


def test_a_row_per_epoch_is_printed(terminal: Any) -> None:
    tuner = make_tuner()
    tuner.freeze()
    stage = tuner.fit_one_cycle(2, 1e-2)
    header, *rows = drawn(terminal)
    names = ["epoch", "train_loss", "valid_loss", "accuracy 0", "lr_body", "lr_head", "time"]
    assert header.replace("accuracy 0", "accuracy_0").split() == [
        name.replace(" ", "_") for name in names
    ]
    cells = [row.split() for row in rows]
    assert [row[0] for row in cells] == ["1", "2"]
    for row, epoch, first in zip(cells, stage.epochs, (0, 5), strict=True):
        assert float(row[1]) == pytest.approx(stage.losses[first : first + 5].mean(), abs=6e-5)
        assert float(row[2]) == pytest.approx(epoch["valid_loss"], abs=6e-5)
        assert float(row[3]) == pytest.approx(epoch["accuracy 0"], abs=6e-5)
        assert row[4] == "frozen"
        assert float(row[5]) == pytest.approx(stage.rates[first + 4, -1], rel=0.06)
        assert re.fullmatch(r"\d+:\d\d", row[6])
    assert tuner.history.stages == [stage]


def test_every_stage_has_a_header_and_a_resumed_one_goes_on(terminal: Any) -> None:
    class Break(lrfast.finetune.Callback):
        def on_epoch_begin(self, tuner: Any, epoch: int) -> None:
            if epoch == 1:
                tuner.callbacks.clear()
                raise KeyError

    tuner = make_tuner(callbacks=[Break()])
    with pytest.raises(KeyError):
        tuner.fit_one_cycle(3, 1e-2)
    tuner.resume()
    tuner.fit_one_cycle(1, 1e-2)
    first = [line.split()[0] for line in drawn(terminal)]
    assert first == ["epoch", "1", "epoch", "2", "3", "epoch", "1"]


def test_nothing_is_printed_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """pytest's stderr is no terminal."""
    make_tuner().fit_one_cycle(1, 1e-2)
    assert capsys.readouterr() == ("", "")


def test_nothing_is_printed_on_request(terminal: Any) -> None:
    make_tuner(progress=False).fit_one_cycle(1, 1e-2)
    assert terminal.take() == ""


@pytest.mark.parametrize("metrics", [0, 2, 9])
def test_no_line_is_longer_than_80_columns(
    terminal: Any, metrics: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tuner = make_tuner(metrics)
    stage = tuner.fit_one_cycle(2, slice(1e-4, 1e-2))
    lines = [*re.split(r"[\r\n]", terminal.take()), *str(stage).splitlines()]
    lines += str(tuner.history).splitlines()
    assert max(map(len, lines)) <= 80
    if metrics == 9:
        words = str(stage).split("more in epochs: ")[1].split()
        assert " ".join(words) == ", ".join(f"accuracy {index}" for index in range(2, 9))


def test_a_stage_is_printed_as_its_table() -> None:
    tuner = make_tuner()
    stage = tuner.fit_one_cycle(2, slice(1e-4, 1e-2))
    title, *table = str(stage).splitlines()
    assert re.fullmatch(r"one-cycle: 2 epochs, 10 steps, completed in \d+\.\d s", title)
    assert table == epoch_table(stage) and len(table) == 3
    assert repr(stage) == str(stage)
    assert stage.groups == ("0", "2", "4")
    assert Stage.from_dict(stage.to_dict()).groups == stage.groups
    long = replace(stage, epochs=tuple({"step": float(min(i, 10))} for i in range(1, 501)))
    assert len(str(long).splitlines()) == 23


def test_a_history_is_printed_as_a_table_of_stages() -> None:
    tuner = make_tuner()
    assert str(tuner.history) == repr(History()) == "no stages yet"
    tuner.freeze()
    tuner.fit_one_cycle(1, 1e-2)
    tuner.unfreeze()
    last = tuner.fit_one_cycle(2, 1e-3)
    header, first, second = str(tuner.history).splitlines()
    assert first.split()[:3] == ["one-cycle", "1", "5"]
    assert float(second.split()[3]) == pytest.approx(last.losses[5:].mean(), rel=1e-3)
    assert float(second.split()[4]) == pytest.approx(last.epochs[-1]["valid_loss"], rel=1e-3)
    assert header.split()[3:5] == ["train_loss", "valid_loss"] and second.endswith("completed")


def test_many_groups_are_summed_up() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(200)])
    model[3].requires_grad_(False)
    groups = lrfast.layer_groups(model)
    assert isinstance(groups, LayerGroups) and len(groups.describe().splitlines()) > 200
    optimizer = lrfast.AdamW(lrfast.discriminative(model, slice(1e-5, 1e-2)), weight_decay=0.1)
    batches = [(torch.ones(4, 2), torch.zeros(4, 2))]
    mse = nn.functional.mse_loss
    options = {"num_iter": 20, "end_lr": 1.0, "progress": False}
    result = lrfast.lr_find(model, optimizer, batches, mse, **options)
    applied = result.apply(optimizer, rule="minimum")
    for text in (repr(groups), repr(optimizer), str(applied)):
        assert len(text.splitlines()) < 30 and "... 200 in all" in text
        assert max(map(len, text.splitlines())) <= 80


def test_an_optimizer_shows_what_it_does() -> None:
    layer = nn.Linear(2, 3)
    schedule = lrfast.schedules.one_cycle(100)
    groups = [{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}]
    options = {"max_grad_norm": 2.0, "ema_decay": 0.99, "amsgrad": True}
    text = repr(lrfast.AdamW(groups, lr=3e-3, weight_decay=0.1, schedule=schedule, **options))
    shown = dict(re.findall(r"^    (\w+): (.*)$", text, re.MULTILINE))
    assert shown == {
        "betas": "(0.9, 0.999)",
        "eps": "1e-08",
        "amsgrad": "True",
        "max_grad_norm": "2.0",
        "ema_decay": "0.99",
        "schedule": "one-cycle, 100 steps",
    }
    *_, header, weight, bias, end = text.splitlines()
    assert header.split() == ["group", "parameters", "lr", "weight_decay"]
    assert weight.split() == ["0", "6", "0.003", "0.1"] and bias.split() == [
        "1",
        "3",
        "0.003",
        "0.0",
    ]
    assert text.startswith("AdamW (\n") and end == ")"
    assert "capturable" not in text and "foreach" not in text


def test_a_schedule_is_printed_as_its_description() -> None:
    schedule = lrfast.schedules.one_cycle(100)
    assert str(schedule) == schedule.describe()
    assert repr([schedule]) == "[Schedule(one-cycle, 100 steps)]"


def test_the_history_plot_names_stages_and_groups_and_shows_metrics() -> None:
    tuner = make_tuner(2)
    tuner.freeze()
    tuner.fit_one_cycle(1, 1e-2)
    tuner.unfreeze()
    tuner.fit_sgdr(1, 1, slice(1e-4, 1e-2))
    losses, metrics, lrs = tuner.history.plot().axes
    assert [text.get_text() for text in losses.texts] == [s.name for s in tuner.history.stages]
    assert [line.get_label() for line in metrics.lines] == ["accuracy 0", "accuracy 1"]
    legend = lrs.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["0", "2", "4"]
    assert lrs.get_yscale() == "linear"
    assert tuner.history.plot(log_lr=True).axes[-1].get_yscale() == "log"
    np.testing.assert_array_equal(metrics.lines[0].get_xdata(), [5, 10])
