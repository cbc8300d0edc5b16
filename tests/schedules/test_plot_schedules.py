"""Figures of schedules: one, and what those of an optimizer will do to all of its groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from figures import assert_is_png, curve, panels, verticals

import lrfast
from lrfast import schedules
from lrfast.plot import plot_schedule, plot_schedules


def test_schedule_shows_multiplier_and_momentum(tmp_path: Path) -> None:
    schedule = schedules.one_cycle(50)
    rate, momentum = panels(schedule.plot(tmp_path / "schedule.png"), 2)
    steps = np.arange(50)
    np.testing.assert_array_equal(curve(rate, "group 0"), (steps, schedule.values(steps)))
    np.testing.assert_array_equal(
        momentum.lines[0].get_xydata().T, (steps, schedule.momentum(steps))
    )
    assert (rate.get_ylabel(), momentum.get_ylabel()) == ("multiplier", "momentum")
    assert rate.get_yscale() == "linear" and rate.get_title() == "one-cycle"
    assert momentum.get_xlabel() == "step" and rate.get_legend() is None
    assert_is_png(tmp_path / "schedule.png")


def test_schedule_of_several_groups() -> None:
    schedule = schedules.cosine(30, eta_min=0.1)
    (axes,) = panels(plot_schedule(schedule, rates=[1e-4, 1e-3, 1e-2]), 1)
    for group, rate in enumerate((1e-4, 1e-3, 1e-2)):
        _, shown = curve(axes, f"group {group}")
        np.testing.assert_allclose(shown, rate * schedule.values(range(30)), rtol=1e-14)
    assert axes.get_yscale() == "log" and axes.get_ylabel() == "learning rate"
    assert axes.get_legend() is not None and len({line.get_linestyle() for line in axes.lines}) == 3
    (same,) = panels(plot_schedule(schedule, rates=[1e-3, 1e-3]), 1)
    assert same.get_yscale() == "linear" and same.get_legend() is None


def test_schedule_shows_the_weight_decay_too() -> None:
    schedule = schedules.cosine(30).with_weight_decay(schedules.linear(1.0, 2.0, 30))
    _, decay = panels(schedule.plot(), 2)
    assert decay.get_ylabel() == "weight decay, multiplier"
    np.testing.assert_array_equal(
        decay.lines[0].get_xydata().T, (np.arange(30), schedule.weight_decay(range(30)))
    )


def scheduled(count: int, **options: Any) -> Any:
    """Groups of their own rates, decays and schedules; the last one has no schedule."""
    cycle = schedules.one_cycle(60).with_weight_decay(schedules.linear(1.0, 3.0, 60))
    groups = [
        {
            "params": [torch.zeros(1, requires_grad=True)],
            "lr": 1e-4 * 3**index,
            "weight_decay": 0.01 * (index % 3),
            "name": f"layer{index}",
        }
        for index in range(count)
    ]
    kinds = [cycle, schedules.cosine(40), schedules.multistep([20, 30], 0.3)]
    chosen = [kinds[index % 3] for index in range(count - 1)]
    return lrfast.AdamW(groups, schedule=[*chosen, None], **options)


def test_all_channels_of_all_groups_are_one_picture(tmp_path: Path) -> None:
    """Each group's curve is there, under its name, and those that are alike are one line."""
    optimizer = scheduled(5)
    optimizer.param_groups[0]["frozen"] = True
    figure = plot_schedules(optimizer, path=tmp_path / "planned.png")
    axes = panels(figure, 3)
    planned = optimizer.planned()
    labels = ["learning rate", "momentum", "weight decay"]
    assert [each.get_ylabel() for each in axes] == labels and axes[2].get_xlabel() == "step"
    steps = np.arange(60)
    channels = (planned.rates, planned.momenta, planned.weight_decays)
    for each, values in zip(axes, channels, strict=True):
        shown = [tuple(line.get_ydata()) for line in each.lines]
        assert {tuple(column) for column in values.T} == set(shown)
        assert len(shown) == len(set(shown))
        assert all((line.get_xdata() == steps).all() for line in each.lines)
        looks = {(line.get_linestyle(), line.get_marker()) for line in each.lines}
        assert len(looks) == len(shown)  # without a look at the colour
        assert each.get_legend() is not None
    for index in range(5):
        name = f"group layer{index}" + (" (frozen)" if index == 0 else "")
        np.testing.assert_array_equal(curve(axes[0], name)[1], planned.rates[:, index])
    assert axes[0].get_yscale() == "log" and "one-cycle" in axes[0].get_title()
    assert "groups layer0 (frozen), layer3" in [line.get_label() for line in axes[1].lines]
    assert_is_png(tmp_path / "planned.png")


def test_planned_is_what_the_steps_then_do() -> None:
    optimizer = scheduled(4)
    planned = optimizer.planned(70)
    assert planned.rates.shape == planned.momenta.shape == planned.weight_decays.shape == (70, 4)
    for step in range(70):
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones(1)
        optimizer.step()
        assert optimizer.last_rates.tolist() == planned.rates[step].tolist()
    cycle = optimizer.schedules[0]
    np.testing.assert_array_equal(planned.momenta[:, 0], cycle.momentum(range(70)))
    np.testing.assert_array_equal(planned.momenta[:, 3], 0.9)
    np.testing.assert_array_equal(planned.weight_decays[:, 3], 0.0)
    np.testing.assert_allclose(
        planned.weight_decays[:, 0], 0.0 * cycle.weight_decay(range(70)), rtol=0
    )


def test_where_training_stands_is_marked() -> None:
    optimizer = scheduled(2)
    assert verticals(plot_schedules(optimizer, 20).axes[0]) == []
    optimizer.set_schedule(schedules.cosine(40), step=7)
    assert verticals(plot_schedules(optimizer, 20).axes[0]) == [7.0]


def test_hundreds_of_groups_keep_a_legend_that_can_be_read() -> None:
    optimizer = scheduled(60)
    axes = plot_schedules(optimizer, 40).axes[0]
    assert len(axes.lines) == 60
    legend = axes.get_legend()
    assert legend is not None and len(legend.get_texts()) <= 20
    assert [text.get_text() for text in legend.get_texts()][-1] == "group layer59"


def test_a_rule_without_momentum_has_no_such_panel() -> None:
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = lrfast.Adagrad([parameter], lr=0.1, schedule=schedules.one_cycle(9))
    labels = [axes.get_ylabel() for axes in plot_schedules(optimizer).axes]
    assert labels == ["learning rate", "weight decay"]
    assert np.isnan(optimizer.planned().momenta).all()
    bare = lrfast.SGD([parameter], lr=0.1)
    with pytest.raises(ValueError, match="steps must be given for an optimizer without a schedule"):
        plot_schedules(bare)
    assert plot_schedules(bare, 5).axes[0].lines[0].get_ydata().tolist() == [0.1] * 5
    with pytest.raises(ValueError, match="steps must be a whole number, 1 or more, got 0"):
        bare.planned(0)
