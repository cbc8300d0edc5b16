"""What is known before a sweep: typical rates, what "auto" makes of them, how lr_find knows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from reference.curves import noise_only, rates, s_curve
from torch import nn

import lrfast
from lrfast import suggest
from lrfast.range_test._analysis import suggest_all
from lrfast.range_test._priors import RatePrior, rate_prior, weight_stats
from lrfast.training._data import DataSize

LRS = rates()


def moved(curve: Any, typical: float, **options: Any) -> tuple[float, float]:
    """The answers without and with a typical rate."""
    alone = suggest.auto(LRS, curve, **options).lr
    drawn = suggest.auto(LRS, curve, typical=typical, **options).lr
    assert alone is not None and drawn is not None
    return alone, drawn


# The published rates.


@pytest.mark.parametrize(
    ("parameters", "published"),
    [(1.25e8, 6e-4), (3.5e8, 3e-4), (1.3e9, 2e-4), (6.7e9, 1.2e-4), (13e9, 1e-4), (1.75e11, 6e-5)],
)
def test_adam_is_typically_run_at_what_gpt3_was(parameters: float, published: float) -> None:
    rate = suggest.typical_rate("AdamW", int(parameters))
    assert rate is not None and abs(math.log(rate / published)) < math.log(1.5)


def test_typical_rates_of_the_other_optimizers() -> None:
    adam = suggest.typical_rate("Adam", 10_000)
    assert adam is not None
    assert adam == pytest.approx(0.012033, rel=1e-4)
    for name in ("AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"):
        assert suggest.typical_rate(name, 10_000) == adam
    assert suggest.typical_rate("Lion", 10_000) == pytest.approx(adam / 5)
    assert suggest.typical_rate("Adagrad", 10_000) == pytest.approx(10 * adam)
    assert suggest.typical_rate("RMSprop", 10_000, 0.9) == pytest.approx(adam / 10)
    for parameters in (1, 10**9):
        assert suggest.typical_rate("SGD", parameters) == 1.0
        assert suggest.typical_rate("SGD", parameters, 0.9) == pytest.approx(0.1)
    assert suggest.typical_rate("LBFGS", 10_000) is None


@pytest.mark.parametrize("parameters", [0, -1, 1.5, True, math.nan])
def test_parameters_are_counted(parameters: Any) -> None:
    with pytest.raises(ValueError, match="parameters must be a whole number, 1 or more, got "):
        suggest.typical_rate("Adam", parameters)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan, math.inf])
def test_momentum_is_a_share(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum must be at least 0 and below 1, got "):
        suggest.typical_rate("SGD", 10, momentum)


def usual_rms(parameters: int) -> float:
    """GPT-3's 0.02 at 1.25e8 parameters, and ten times that at a hundred thousandth of them."""
    return float(0.02 * (1.25e8 / parameters) ** 0.2)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Lion", "Adagrad"])
@pytest.mark.parametrize("parameters", [100, 10_000, 125_000_000])
def test_large_weights_take_larger_rates(name: str, parameters: int) -> None:
    usual = usual_rms(parameters)
    alone = suggest.typical_rate(name, parameters)
    assert alone is not None
    for larger, factor in [(1, 1), (4, 4), (1 / 3, 1 / 3), (30, 10), (1e-3, 0.1)]:
        found = suggest.typical_rate(name, parameters, weight_rms=larger * usual)
        assert found == pytest.approx(alone * factor**0.4)


def test_weights_that_say_nothing_and_strange_optimizers() -> None:
    for rms in (None, 0.0):
        assert suggest.typical_rate("SGD", 100, 0.5, rms) == 0.5
    assert suggest.typical_rate("LBFGS", 100, weight_rms=1.0) is None


@pytest.mark.parametrize("rms", [-0.1, math.nan, math.inf])
def test_a_root_mean_square_is_a_size(rms: float) -> None:
    with pytest.raises(ValueError, match="weight_rms must be None, or finite and 0 or more, got "):
        suggest.typical_rate("SGD", 10, weight_rms=rms)


# What "auto" makes of it.


@pytest.mark.parametrize("typical", [0.01, 0.05, 0.1])
def test_auto_moves_most_of_the_way(typical: float) -> None:
    alone, drawn = moved(s_curve(LRS, 1e-3, 1.0, depth=1.0), typical)
    assert math.log(drawn / alone) == pytest.approx(0.6 * math.log(typical / alone))


def test_auto_names_the_typical_rate() -> None:
    curve = s_curve(LRS)
    reason = suggest.auto(LRS, curve, typical=0.0123).reason
    assert reason == suggest.auto(LRS, curve).reason + (
        "; this optimizer usually trains a model of this size at 1.2e-02"
    )
    never_lost = suggest.auto(LRS, s_curve(LRS, 1e-4, 1e9), typical=1e-3)
    assert never_lost.reason.endswith(
        "never comes back up to half; this optimizer usually trains a model of this size at 1.0e-03"
    )


@pytest.mark.parametrize(("depth", "weight"), [(0.5, 0.6), (0.15, 0.7), (0.075, 0.8)])
def test_the_shallower_the_fall_the_more_the_typical_rate_weighs(
    depth: float, weight: float
) -> None:
    """The curve starts at 3; a tenth of that is 0.3, half of it 0.15."""
    curve = s_curve(LRS, 1e-3, 1.0, depth=depth)
    curve += 3.0 - curve[0]
    alone, drawn = moved(curve, 0.1)
    wanted = 1 - 0.4 * min(depth / 0.3, 1)
    assert math.log(drawn / alone) / math.log(0.1 / alone) == pytest.approx(wanted, abs=0.02)
    assert wanted == pytest.approx(weight, abs=0.15)


@pytest.mark.parametrize("typical", [1e-12, 1e12])
def test_auto_stays_near_the_curve(typical: float) -> None:
    """Within a factor of 10, and below half of where half of the fall is lost again."""
    curve = s_curve(LRS, 1e-5, 1.0)
    alone, drawn = moved(curve, typical)
    assert drawn == pytest.approx(alone * (10 if typical > 1 else 0.1))
    narrow = s_curve(LRS, 3e-2, 0.3)
    answer = suggest.auto(LRS, narrow, typical=typical)
    lost = float(answer.reason.split("back up to half at ")[1].split(";")[0])
    assert answer.lr is not None and answer.lr <= 0.7 * lost * 1.05
    assert (answer.lr == pytest.approx(0.7 * lost, rel=0.05)) == (typical > 1)


def test_auto_does_not_leave_the_range_that_was_swept() -> None:
    kept = LRS < 3e-3
    answer = suggest.auto(LRS[kept], s_curve(LRS, 1e-4, 1e9)[kept], typical=1.0)
    assert answer.lr == pytest.approx(LRS[kept][-1], rel=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_auto_follows_the_scale_of_all_rates(scale: float) -> None:
    curve = s_curve(LRS, noise=0.02, seed=1)
    here = suggest.auto(LRS, curve, typical=0.02).lr
    there = suggest.auto(scale * LRS, curve, typical=scale * 0.02).lr
    assert here is not None and there == pytest.approx(scale * here)


def test_a_typical_rate_makes_no_curve_say_something() -> None:
    for curve in (noise_only(100, 0), np.linspace(1, 5, 100), np.full(100, 2.5)):
        assert suggest.auto(LRS, curve, typical=0.01) == suggest.auto(LRS, curve)
        assert suggest.auto(LRS, curve).lr is None


@pytest.mark.parametrize("typical", [0.0, -1.0, math.nan, math.inf])
def test_typical_is_a_rate(typical: float) -> None:
    with pytest.raises(ValueError, match="typical must be None, or a finite rate above 0, got "):
        suggest.auto(LRS, s_curve(LRS), typical=typical)


# How lr_find finds out.


def parameters(*sizes: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(size)) for size in sizes]


@pytest.mark.parametrize("library", [lrfast, torch.optim])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9}),
        ("Adam", {}),
        ("AdamW", {}),
        ("NAdam", {}),
        ("RMSprop", {}),
        ("RMSprop", {"momentum": 0.5}),
        ("Adagrad", {}),
    ],
)
def test_the_context_of_an_optimizer(library: Any, name: str, options: dict[str, Any]) -> None:
    optimizer = getattr(library, name)(parameters(600, 400), lr=0.1, **options)
    found = rate_prior(optimizer, 0, DataSize())
    assert found.typical == suggest.typical_rate(name, 1000, options.get("momentum", 0.0))
    assert found.typical is not None


def test_the_context_of_a_subclass_and_of_a_stranger() -> None:
    class Mine(torch.optim.AdamW):
        pass

    class Strange(torch.optim.Optimizer):
        pass

    assert rate_prior(Mine(parameters(10)), 0, DataSize()).typical == suggest.typical_rate(
        "AdamW", 10
    )
    assert rate_prior(Strange(parameters(10), {"lr": 0.1}), 0, DataSize()).typical is None


def test_frozen_parameters_do_not_count_and_the_reference_decides() -> None:
    body, head = parameters(1000, 10)
    body.requires_grad_(False)
    groups = [{"params": [body], "momentum": 0.5}, {"params": [head], "momentum": 0.9}]
    optimizer = torch.optim.RMSprop(groups, lr=0.1)
    assert rate_prior(optimizer, 1, DataSize()).typical == suggest.typical_rate("RMSprop", 10, 0.9)
    assert rate_prior(optimizer, 0, DataSize()).typical == suggest.typical_rate("RMSprop", 10, 0.5)


def test_weights_of_several_kinds_and_groups() -> None:
    torch.manual_seed(0)
    body = nn.Parameter(torch.full((300,), 2.0, dtype=torch.bfloat16))
    frozen = nn.Parameter(torch.full((50,), 9.0), requires_grad=False)
    head = nn.Parameter(torch.full((100,), 3 + 4j))
    optimizer = lrfast.SGD([{"params": [body, frozen]}, {"params": [head]}], lr=0.1)
    weights = weight_stats(optimizer)
    assert weights.count == 400
    assert weights.rms == pytest.approx(math.sqrt((300 * 4 + 100 * 25) / 400))
    with torch.no_grad():
        body[7] = math.nan
    assert weight_stats(optimizer).rms is None


def test_the_weights_before_the_sweep_count() -> None:
    """A sweep leaves other weights behind, and is undone only at the end."""
    torch.manual_seed(1)
    model = nn.Linear(4, 1)
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)
    before = rate_prior(optimizer, 0, DataSize(64))
    inputs = torch.randn(64, 4)
    batches = [(inputs, inputs.sum(1, keepdim=True) + 0.1 * torch.randn(64, 1))]
    result = lrfast.lr_find(model, optimizer, batches, nn.functional.mse_loss, progress=False)
    assert (
        f"usually trains a model of this size at {before.typical:.1e}" in result.suggestion.reason
    )


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_lr_find_passes_it_on(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = getattr(lrfast, kind)(model.parameters(), lr=0.1)
    rms = weight_stats(optimizer).rms
    inputs = torch.randn(64, 4)
    batches = [(inputs, inputs.sum(1, keepdim=True))]
    result = lrfast.lr_find(model, optimizer, batches, nn.functional.mse_loss, progress=False)
    count = sum(parameter.numel() for parameter in model.parameters())
    expected = suggest.auto(
        result.lrs,
        result.losses,
        typical=suggest.typical_rate(kind, count, weight_rms=rms),
        scale=suggest.rate_scale(kind, batch_size=64),
    )
    assert result.suggestion == expected and expected.lr is not None
    assert result.suggestion != suggest.auto(result.lrs, result.losses)


def test_a_result_passes_on_all() -> None:
    curve = s_curve(LRS, 1e-3, 1.0)
    found = suggest_all(LRS, curve, curve, 100, RatePrior(0.05, 0.7))["auto"]
    assert found == suggest.auto(LRS, curve, typical=0.05, scale=0.7)
    assert found != suggest.auto(LRS, curve, typical=0.05)
    assert found != suggest.auto(LRS, curve, scale=0.7)
