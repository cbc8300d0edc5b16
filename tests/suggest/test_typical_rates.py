"""What is known before a sweep: typical rates, what "auto" makes of them, how lr_find knows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from reference.curves import noise_only, rates, s_curve
from tiny import cross_entropy, make_batches, make_model
from torch import nn

import lrfast
from lrfast import suggest
from lrfast.range_test._analysis import suggest_all
from lrfast.range_test._priors import RatePrior, rate_prior, weight_stats
from lrfast.suggest._auto import Constants
from lrfast.suggest._shape import read_shape
from lrfast.training._data import DataSize

LRS = rates()


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
    assert adam == pytest.approx(6e-4 * 12_500 ** (1 / 3), rel=1e-12)
    assert suggest.typical_rate("AdamW", 10_000) == pytest.approx(6e-4 * 12_500**0.42, rel=1e-12)
    for size in (125_000_000, 10**10):
        assert suggest.typical_rate("AdamW", size) == suggest.typical_rate("Adam", size)
    for name in ("Adamax", "NAdam", "RAdam", "RMSprop"):
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
        assert found == pytest.approx(alone * factor**0.5)


def test_weights_that_say_nothing_and_strange_optimizers() -> None:
    for rms in (None, 0.0):
        assert suggest.typical_rate("SGD", 100, 0.5, rms) == 0.5
    assert suggest.typical_rate("LBFGS", 100, weight_rms=1.0) is None


@pytest.mark.parametrize("rms", [-0.1, math.nan, math.inf])
def test_a_root_mean_square_is_a_size(rms: float) -> None:
    with pytest.raises(ValueError, match="weight_rms must be None, or finite and 0 or more, got "):
        suggest.typical_rate("SGD", 10, weight_rms=rms)


# What "auto" makes of it.


def edges(curve: Any) -> tuple[float, float, float]:
    """Where what the curve wants begins and ends, and where the loss is back up to half."""
    shape = read_shape(LRS, curve)
    assert not isinstance(shape, str)
    low, up = LRS[shape.falls_by(0.5)], shape.rises_by(0.5)
    assert up is not None
    return low * (LRS[up] / low) ** 0.25, low * (LRS[up] / low) ** 0.5, LRS[up]


def test_a_usual_rate_that_the_curve_wants_stays() -> None:
    curve = s_curve(LRS, 1e-3, 1.0)
    begin, end, _ = edges(curve)
    for typical in (1.01 * begin, 0.99 * end):
        found = suggest.auto(LRS, curve, typical=typical)
        assert found.lr == pytest.approx(typical)
        assert found.confidence == suggest.auto(LRS, curve).confidence
        assert "would have" not in found.reason


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_evidence_counts_by_its_precision(share: float) -> None:
    """0.4 decades of doubt against 0.7: the curve has 0.16 / 0.65 of the weight."""
    curve = s_curve(LRS, 1e-3, 1.0)
    begin, end, _ = edges(curve)
    weight = 0.4**2 / (0.4**2 + 0.7**2)
    for wanted, typical in ((begin, share * begin), (end, end / share)):
        found = suggest.auto(LRS, curve, typical=typical)
        assert found.lr == pytest.approx(typical * (wanted / typical) ** weight)
        assert f"; the curve would have {wanted:.1e} and counts for 25%" in found.reason
        assert found.interval is not None
        deviation = 0.4 * math.sqrt(1 - weight)
        assert found.lr / found.interval[0] == pytest.approx(10**deviation)
    sharp = suggest.auto(LRS, curve, typical=0.2 * begin, constants=Constants(curve=0.1))
    assert sharp.lr is not None and sharp.lr > 0.85 * begin


def test_the_further_apart_the_lower_the_confidence() -> None:
    curve = s_curve(LRS, 1e-3, 1.0, noise=0.02, seed=1)
    begin = edges(curve)[0]
    found = [suggest.auto(LRS, curve, typical=begin / k).confidence for k in (1.0, 3.0, 10.0, 1e3)]
    assert found == sorted(found, reverse=True) and found[0] > 0.8 and found[-1] < 0.05


def test_auto_names_the_typical_rate() -> None:
    curve = s_curve(LRS)
    reason = suggest.auto(LRS, curve, typical=0.0323).reason
    assert reason == suggest.auto(LRS, curve).reason + (
        "; this optimizer usually trains a model of this size at 3.2e-02"
    )
    never_lost = suggest.auto(LRS, s_curve(LRS, 1e-4, 1e9), typical=1e-3)
    assert never_lost.reason.endswith(
        "never comes back up to half; this optimizer usually trains a model of this size at 1.0e-03"
    )
    assert never_lost.lr == pytest.approx(1e-3)


@pytest.mark.parametrize("typical", [1e-12, 1e12])
def test_auto_stays_near_the_curve(typical: float) -> None:
    """Within a factor of 10 of what it wants, and below where half of the fall is lost again."""
    curve = s_curve(LRS, 1e-5, 1.0)
    begin, end, _ = edges(curve)
    found = suggest.auto(LRS, curve, typical=typical).lr
    assert found == pytest.approx(10 * end if typical > 1 else begin / 10)
    narrow = s_curve(LRS, 3e-2, 0.3)
    answer = suggest.auto(LRS, narrow, typical=typical)
    lost = edges(narrow)[2]
    assert answer.lr is not None and answer.lr <= lost * (1 + 1e-12)
    assert (answer.lr == pytest.approx(lost)) == (typical > 1)
    assert answer.reason.endswith("is back up") == (typical > 1)


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


def rising() -> Any:
    return np.linspace(1, 5, 100)


def diverging_noise() -> Any:
    curve = noise_only(100, 3, scatter=0.2)
    curve[-8:] += np.geomspace(1, 100, 8)
    return curve


@pytest.mark.parametrize(
    ("curve", "largest"),
    [
        (noise_only(100, 0), math.inf),
        (np.full(100, 2.5), math.inf),
        (np.full(5, 2.5), math.inf),
        (rising(), LRS[40]),
        (diverging_noise(), LRS[-6] / 2),
    ],
)
def test_without_a_valley_the_usual_rate_is_suggested(curve: Any, largest: float) -> None:
    lrs = LRS[: len(curve)]
    for typical in (1e-3, 1e3):
        found = suggest.auto(lrs, curve, typical=typical, scale=0.5)
        assert found.lr is not None and found.lr <= largest
        assert (found.lr == typical / 2) == (typical / 2 < largest)
        assert found.confidence == 0.2 and found.index is None and found.next_range is not None
        assert (
            f"this optimizer usually trains a model of this size at {typical:.1e}" in found.reason
        )
        assert ("where the loss diverges" in found.reason) == (found.lr != typical / 2)
        assert found.interval is not None and found.interval[0] < found.lr <= found.interval[1]


def test_noise_that_diverges_moves_no_suggestion() -> None:
    """Both crossings are noise, and confidences low."""
    found = []
    for seed in range(40):
        curve = noise_only(100, seed, scatter=0.2)
        curve[-8:] += np.geomspace(1, 100, 8)
        found.append(suggest.auto(LRS, curve, typical=1e-2))
    rates = [answer.lr for answer in found if answer.lr is not None]
    assert len(rates) == 40 and max(rates) < 2 * min(rates)
    assert sorted(answer.confidence for answer in found)[36] <= 0.2


def test_a_fall_that_goes_on_draws_the_usual_rate_up() -> None:
    curve = s_curve(LRS, 10.0, 1e9)
    found = suggest.auto(LRS, curve, typical=1e-3)
    assert found.lr is not None and 1e-3 < found.lr < 10.0 and found.confidence <= 0.2
    assert found.next_range == pytest.approx((LRS[0], 100 * LRS[-1]))
    beyond = suggest.auto(LRS, curve, typical=30.0)
    assert beyond.lr == pytest.approx(30.0 * (LRS[-1] / 30.0) ** (0.16 / 0.65))


def test_a_less_certain_usual_rate_moves_further() -> None:
    curve = s_curve(LRS)
    wanted = suggest.auto(LRS, curve).lr
    assert wanted is not None
    found = [suggest.auto(LRS, curve, typical=wanted / 9, deviation=d) for d in (0.2, 0.4, 0.6)]
    rates = [each.lr for each in found if each.lr is not None]
    assert wanted / 9 < rates[0] < rates[1] < rates[2] < wanted
    widths = [each.interval[1] / each.interval[0] for each in found if each.interval is not None]
    assert widths[0] < widths[1] < widths[2]
    assert "counts for 42%" in found[2].reason


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan, math.inf])
def test_a_deviation_is_a_width(deviation: float) -> None:
    with pytest.raises(ValueError, match="deviation must be a finite number above 0, got "):
        suggest.auto(LRS, s_curve(LRS), deviation=deviation)


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
    assert found.deviation == suggest.typical_deviation(name) == (0.6 if name == "SGD" else 0.4)


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


def test_a_few_large_weights_are_not_the_size_of_all() -> None:
    """As those of normalisation layers; all weights together would have 3.2 of 0.1."""
    matrix, scales = parameters(10_000, 10)
    with torch.no_grad():
        matrix.fill_(0.1)
        scales.fill_(100.0)
    rms = weight_stats(torch.optim.SGD([matrix, scales], lr=0.1)).rms
    assert rms == pytest.approx((0.1 * 10_000 + 100.0 * 10) / 10_010, rel=1e-4)


def test_a_model_without_weights_has_no_size() -> None:
    assert weight_stats(torch.optim.SGD(parameters(0), lr=0.1)).rms == 0.0


def test_weights_of_several_kinds_and_groups() -> None:
    torch.manual_seed(0)
    body = nn.Parameter(torch.full((300,), 2.0, dtype=torch.bfloat16))
    frozen = nn.Parameter(torch.full((50,), 9.0), requires_grad=False)
    head = nn.Parameter(torch.full((100,), 3 + 4j))
    optimizer = lrfast.SGD([{"params": [body, frozen]}, {"params": [head]}], lr=0.1)
    weights = weight_stats(optimizer)
    assert weights.count == 400
    assert weights.rms == pytest.approx((300 * 2 + 100 * 5) / 400)
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
        deviation=suggest.typical_deviation(kind),
    )
    assert result.suggestion == expected and expected.lr is not None
    assert result.suggestion != suggest.auto(result.lrs, result.losses)


def test_a_result_passes_on_all() -> None:
    curve = s_curve(LRS, 1e-3, 1.0)
    found = suggest_all(LRS, curve, curve, 100, RatePrior(0.05, 0.7, 0.9))["auto"]
    assert found == suggest.auto(LRS, curve, typical=0.05, scale=0.7, deviation=0.9)
    assert found != suggest.auto(LRS, curve, typical=0.05, scale=0.7)
    assert found != suggest.auto(LRS, curve, typical=0.05)
    assert found != suggest.auto(LRS, curve, scale=0.7)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1:])
def test_the_order_of_groups_changes_no_suggestion(order: tuple[int, ...]) -> None:
    def found(places: Iterable[int]) -> dict[str, float | None]:
        model = make_model()
        params = list(model.parameters())
        given = [(params[:1], 0.01), (params[1:2], 0.05), (params[2:], 0.02)]
        groups = [{"params": given[place][0], "lr": given[place][1]} for place in places]
        optimizer = lrfast.AdamW(groups, betas=(0.8, 0.95), weight_decay=0.1)
        result = lrfast.lr_find(
            model, optimizer, make_batches(10), cross_entropy, num_iter=60, progress=False
        )
        return {name: each.lr for name, each in result.suggestions.items()}

    permuted, given = found(order), found(range(3))
    assert given["auto"] is not None
    assert permuted == pytest.approx(given, rel=1e-6, nan_ok=True)
