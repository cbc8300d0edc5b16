"""Plateau against torch's own class, against Keras's rules, and what it leaves alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from device_reads import NoDeviceReads
from hypothesis import given, settings
from hypothesis import strategies as st

import lrfast
from lrfast import schedules


def make_sgd(lr: float = 0.1, **options: Any) -> lrfast.SGD:
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 2 * lr}]
    return lrfast.SGD(groups, lr=lr, momentum=0.9, weight_decay=0.01, **options)


SETTINGS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["min", "max"]),
        "factor": st.sampled_from([0.1, 0.5, 0.9]),
        "patience": st.integers(0, 4),
        "threshold": st.sampled_from([0.0, 1e-4, 0.1]),
        "threshold_mode": st.sampled_from(["rel", "abs"]),
        "cooldown": st.integers(0, 3),
    }
)
VALUES = st.lists(st.floats(-2, 2, width=16), min_size=1, max_size=60)


@settings(max_examples=300, deadline=None)
@given(SETTINGS, VALUES)
def test_equals_torch(options: dict[str, Any], values: list[float]) -> None:
    optimizer = make_sgd()
    plateau = lrfast.Plateau(optimizer, **options)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options, eps=0.0)
    for value in values:
        plateau.observe(torch.tensor(value))
        scheduler.step(value)
        assert float(plateau.scale) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-14)


def keras_scales(values: list[float], options: dict[str, Any]) -> list[float]:
    """Keras's on_epoch_end, restated; its threshold is an amount."""
    sign = 1.0 if options["mode"] == "min" else -1.0
    best, wait, cooldown, scale, scales = float("inf"), 0, 0, 1.0, []
    for value in values:
        if cooldown > 0:
            cooldown -= 1
            wait = 0
        if sign * value < best - options["threshold"]:
            best, wait = sign * value, 0
        elif cooldown == 0:
            wait += 1
            if wait >= options["patience"]:
                scale *= options["factor"]
                cooldown, wait = options["cooldown"], 0
        scales.append(scale)
    return scales


@settings(max_examples=300, deadline=None)
@given(SETTINGS, VALUES)
def test_equals_keras(options: dict[str, Any], values: list[float]) -> None:
    options |= {"threshold_mode": "abs", "patience": max(options["patience"], 1)}
    plateau = lrfast.Plateau(make_sgd(), **options, counting="keras")
    for value, scale in zip(values, keras_scales(values, options), strict=True):
        plateau.observe(value)
        assert float(plateau.scale) == pytest.approx(scale, rel=1e-14)


def test_keras_cuts_one_observation_earlier() -> None:
    cuts = {}
    for counting in ("torch", "keras"):
        plateau = lrfast.Plateau(make_sgd(), patience=3, counting=counting)  # type: ignore[arg-type]
        cuts[counting] = 0
        while plateau.cuts == 0:
            plateau.observe(1.0)
            cuts[counting] += 1
    assert cuts == {"torch": 5, "keras": 4}  # the first observation is the best


def test_the_step_uses_the_scale_on_top_of_the_schedule(device: torch.device) -> None:
    """Also after the schedule is replaced, states are loaded, and a range test has come between."""
    layer = torch.nn.Linear(3, 2).to(device)
    optimizer = lrfast.SGD(layer.parameters(), lr=0.4, schedule=schedules.linear(1.0, 0.0, 10))
    plateau = lrfast.Plateau(optimizer, factor=0.5, patience=0)

    def used() -> float:
        layer(torch.ones(1, 3, device=device)).sum().backward()
        optimizer.step()
        return float(optimizer.last_rates[0])

    assert used() == 0.4
    for _ in range(2):
        plateau.observe(torch.ones((), device=device))
    assert optimizer.get_last_lr() == pytest.approx([0.4 * 0.9 * 0.5])
    assert used() == pytest.approx(0.4 * 0.9 * 0.5)
    optimizer.load_state_dict(optimizer.state_dict())
    assert used() == pytest.approx(0.4 * 0.8 * 0.5)
    data = [(torch.ones(4, 3, device=device), torch.ones(4, 2, device=device))] * 12
    swept: list[float] = []
    hook = optimizer.register_step_post_hook(
        lambda *_: swept.append(float(optimizer.last_rates[0]))
    )
    lrfast.lr_find(
        layer, optimizer, data, torch.nn.functional.mse_loss, num_iter=12, progress=False
    )
    hook.remove()
    assert swept[0] == pytest.approx(1e-7)  # not half of it
    assert used() == pytest.approx(0.4 * 0.7 * 0.5)
    optimizer.set_schedule(None)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * 0.6)
    assert used() == pytest.approx(0.4 * 0.6 * 0.5)
    plateau.detach()
    assert used() == pytest.approx(0.4 * 0.6)


def test_never_reads_the_device() -> None:
    optimizer = make_sgd()
    plateau = lrfast.Plateau(optimizer, patience=0)
    with NoDeviceReads():
        for _ in range(3):
            plateau.observe(torch.ones(()))
            optimizer.step()
    assert plateau.cuts == 2


def test_min_factor_ends_the_cuts() -> None:
    plateau = lrfast.Plateau(make_sgd(), factor=0.5, patience=0, min_factor=0.2)
    for _ in range(9):
        plateau.observe(1.0)
    assert float(plateau.scale) == 0.2 and plateau.cuts == 3


def test_a_value_that_is_no_number_is_bad() -> None:
    plateau = lrfast.Plateau(make_sgd(), patience=1)
    for value in (1.0, float("nan"), float("nan")):
        plateau.observe(value)
    assert plateau.cuts == 1


@pytest.mark.parametrize("at", range(8))
def test_resumes(at: int) -> None:
    values = [1.0, 0.9, 0.95, 0.96, 0.97, 0.5, 0.6, 0.7, 0.8, 0.9]
    options: dict[str, Any] = {"factor": 0.5, "patience": 1, "cooldown": 1}
    whole = lrfast.Plateau(make_sgd(), **options)
    first = lrfast.Plateau(make_sgd(), **options)
    second = lrfast.Plateau(make_sgd(), **options)
    for k, value in enumerate(values):
        if k == at:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        whole.observe(value)
        (first if k < at else second).observe(value)
    assert float(second.scale) == float(whole.scale) < 1
    with pytest.raises(ValueError, match=r"without \['best', 'cuts'\]"):
        second.load_state_dict({"bad": 1, "cooldown": 0, "scale": 1.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "least"}, "mode must be 'min' or 'max', got 'least'"),
        ({"threshold_mode": "x"}, "threshold_mode must be 'rel' or 'abs', got 'x'"),
        ({"counting": "timm"}, "counting must be 'torch' or 'keras', got 'timm'"),
        ({"factor": 1.0}, r"factor must lie in \(0, 1\), got 1.0"),
        ({"factor": 0.0}, r"factor must lie in \(0, 1\), got 0.0"),
        ({"min_factor": -0.1}, r"min_factor must lie in \[0, 1\], got -0.1"),
        ({"threshold": -1.0}, "threshold must be finite and not negative, got -1.0"),
        ({"patience": -1}, "patience must be a whole number, 0 or more, got -1"),
        ({"patience": 0, "counting": "keras"}, "patience must be a whole number, 1 or more, got 0"),
        ({"cooldown": 1.5}, "cooldown must be a whole number, 0 or more, got 1.5"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    optimizer = make_sgd()
    with pytest.raises(ValueError, match=message):
        lrfast.Plateau(optimizer, **options)
    lrfast.Plateau(optimizer)  # nothing was attached
    with pytest.raises(ValueError, match="one Plateau or Greedy at most, got one that"):
        lrfast.Plateau(optimizer)


def test_refuses_other_optimizers_and_vectors() -> None:
    with pytest.raises(TypeError, match="one of lrfast's, got SGD"):
        lrfast.Plateau(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scalar, got shape \[2\]"):
        lrfast.Plateau(make_sgd()).observe(torch.ones(2))
