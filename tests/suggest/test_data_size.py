"""The size of batches and of the data: their factor, what "auto" makes of it, how lr_find knows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference.curves import noise_only, rates, s_curve
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lrfast
from lrfast import suggest
from lrfast.range_test._priors import rate_prior
from lrfast.training._data import DataSize
from lrfast.training._step import Training

LRS = rates()


# The factor.


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Lion", "LBFGS"])
def test_a_usual_training_has_the_usual_rate(optimizer: str) -> None:
    assert suggest.rate_scale(optimizer) == 1.0
    assert suggest.rate_scale(optimizer, batch_size=32) == 1.0
    assert suggest.rate_scale(optimizer, parameters=1000, targets=1000) == 1.0
    assert suggest.rate_scale(optimizer, parameters=10, targets=10**9) == 1.0
    assert suggest.rate_scale(optimizer, parameters=10**9) == 1.0
    assert suggest.rate_scale(optimizer, targets=1) == 1.0


@pytest.mark.parametrize("batch", [1, 8, 64, 4096])
def test_rates_follow_the_noise_of_batches(batch: int) -> None:
    """SGD's like equation 2.7 of arXiv:1812.06162, those of adaptive rules like its root."""
    sgd = suggest.rate_scale("SGD", batch_size=batch)
    assert sgd == pytest.approx((batch / (batch + 200)) / (32 / 232))
    for name in ("Adam", "AdamW", "NAdam", "RMSprop", "Adagrad", "Lion"):
        assert suggest.rate_scale(name, batch_size=batch) == pytest.approx(math.sqrt(sgd))
    assert suggest.rate_scale("LBFGS", batch_size=batch) == 1.0


@pytest.mark.parametrize(
    ("parameters", "ratio"), [(2500, 2.5), (30_000, 30.0), (10**8, 1e5), (10**10, 1e5)]
)
def test_rates_fall_where_parameters_are_many(parameters: int, ratio: float) -> None:
    for name in ("SGD", "Adam", "LBFGS"):
        found = suggest.rate_scale(name, parameters=parameters, targets=1000)
        assert found == pytest.approx(ratio**-0.3)
    both = suggest.rate_scale("SGD", batch_size=16, parameters=parameters, targets=1000)
    assert both == pytest.approx(ratio**-0.3 * suggest.rate_scale("SGD", batch_size=16))


@pytest.mark.parametrize("targets", [2_500, 3_700, 5_800])  # RTE, MRPC, STS-B
def test_fine_tuning_bert_is_usual(targets: int) -> None:
    """Its authors advise 2e-5 to 5e-5 for 1.1e8 parameters and batches of 32."""
    usual = suggest.typical_rate("AdamW", 110_000_000)
    assert usual is not None
    scale = suggest.rate_scale("AdamW", batch_size=32, parameters=110_000_000, targets=targets)
    assert 2e-5 < usual * scale < 5e-5


@pytest.mark.parametrize("name", ["batch_size", "parameters", "targets"])
@pytest.mark.parametrize("wrong", [0, -3, 2.5, True, math.nan, "8"])
def test_counts_are_whole(name: str, wrong: Any) -> None:
    given: dict[str, Any] = {name: wrong}
    with pytest.raises(ValueError, match=f"{name} must be None, or a whole number, 1 or more, got"):
        suggest.rate_scale("Adam", **given)


# What "auto" makes of it.


@pytest.mark.parametrize("scale", [0.3, 1.7])
def test_auto_multiplies_what_is_usual(scale: float) -> None:
    curve = s_curve(LRS, 1e-3, 1.0, noise=0.02, seed=3)
    text = f"; scaled by {scale} for the batch size and the amount of data"
    usual = suggest.auto(LRS, curve, typical=0.02 * scale)
    scaled = suggest.auto(LRS, curve, typical=0.02, scale=scale)
    assert scaled.lr == pytest.approx(usual.lr) and text in scaled.reason
    plain = suggest.auto(LRS, curve)
    alone = suggest.auto(LRS, curve, scale=scale)
    assert plain.lr is not None and alone.lr == pytest.approx(scale * plain.lr)
    assert alone.reason == plain.reason + text


def test_auto_stays_below_the_rise_however_large_the_batches() -> None:
    curve = s_curve(LRS, 1e-3, 1.0)
    answer = suggest.auto(LRS, curve, scale=1000.0)
    lost = float(answer.reason.split("back up to half at ")[1].split(";")[0])
    assert answer.lr == pytest.approx(lost, rel=0.05)


def test_a_scale_makes_no_curve_say_something() -> None:
    curve = noise_only(100, 0)
    assert suggest.auto(LRS, curve, scale=0.5) == suggest.auto(LRS, curve)
    assert suggest.auto(LRS, curve).lr is None


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_scale_is_a_factor(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be a finite number above 0, got "):
        suggest.auto(LRS, s_curve(LRS), scale=scale)


# How lr_find finds out.

INPUTS = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS[:, :3] > 0).long()
NUMBERS = INPUTS[:, :3].sin()


def in_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(INPUTS.split(8), TARGETS.split(8), strict=True))


def named_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return squared(model(batch["inputs"]), batch["targets"])


def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(outputs, targets.float())


SOURCES: dict[str, tuple[Iterable[Any], dict[str, Any], DataSize]] = {
    "a loader": (DataLoader(TensorDataset(INPUTS, TARGETS), 16), {}, DataSize(16, 144)),
    "a list": (in_batches(), {}, DataSize(8, 144)),
    "one batch": ([(INPUTS, TARGETS)], {}, DataSize(48, 144)),
    "nobody knows how many": (itertools.cycle(in_batches()), {}, DataSize(8, None)),
    "gradients of three batches": (
        in_batches(),
        {"gradient_accumulation_steps": 3},
        DataSize(24, 144),
    ),
    "the same batch again": (in_batches(), {"same_batch": True}, DataSize(8, 144)),
    "two repeats": (in_batches(), {"repeats": 2}, DataSize(8, 144)),
    "numbers to predict": (DataLoader(TensorDataset(INPUTS, NUMBERS), 16), {}, DataSize(16)),
    "by name": (
        [{"inputs": x, "targets": y, "weight": 1.0} for x, y in in_batches()],
        {"loss_fn": None, "compute_loss": named_loss},
        DataSize(8, 144),
    ),
    "no tensors": (
        [range(8)],
        {
            "loss_fn": None,
            "compute_loss": lambda model, rows: squared(
                model(INPUTS[list(rows)]), TARGETS[list(rows)]
            ),
        },
        DataSize(None, None),
    ),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_lr_find_counts_rows_and_targets(source: str, kind: str) -> None:
    data, options, amounts = SOURCES[source]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 60), nn.ReLU(), nn.Linear(60, 3))
    optimizer = getattr(lrfast, kind)(model.parameters(), lr=0.1)
    given: dict[str, Any] = {"loss_fn": squared} | options
    result = lrfast.lr_find(model, optimizer, data, progress=False, **given)
    known = rate_prior(optimizer, 0, amounts)
    assert result.suggestion == suggest.auto(
        result.lrs,
        result.losses,
        typical=known.typical,
        scale=known.scale,
        deviation=known.deviation,
    )
    assert result.suggestion.lr is not None
    assert known.scale == suggest.rate_scale(
        kind, batch_size=amounts.batch_size, parameters=543, targets=amounts.targets
    )
    assert ("for the batch size" in result.suggestion.reason) == (known.scale != 1.0)
    assert (known.scale == 1.0) == (source == "no tensors")


def test_all_processes_count() -> None:
    model = nn.Linear(5, 3)
    three: Any = SimpleNamespace(count=3)
    optimizer = lrfast.SGD(model.parameters())
    training = Training(model, optimizer, in_batches(), named_loss, ranks=three)
    assert training.data_size(in_batches()[:2]) == DataSize(48, 432)
