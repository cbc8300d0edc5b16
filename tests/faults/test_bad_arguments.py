"""Bad input to the upper half: an error that says what to do, and nothing has changed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sweep_setups import Bench
from tiny import boom, cross_entropy, make_model, trace
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import lrfast
from lrfast import LossCurve, lr_find, schedules, suggest
from lrfast.training._data import DataExhausted


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield torch.ones(4), 1


def frozen(b: Bench) -> Any:
    b.model.requires_grad_(False)
    try:
        b.find()
    finally:
        b.model.requires_grad_(True)


def foreign(b: Bench) -> Any:
    return lr_find(b.model, lrfast.SGD(make_model().parameters(), 0.1), b.batches, cross_entropy)


def sparse(b: Bench) -> Any:
    model = b.sparse
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = lrfast.AdamW(model.parameters(), 0.1)
    try:
        lr_find(model, optimizer, [(torch.tensor([1]), torch.tensor([0]))], cross_entropy)
    finally:
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert optimizer.param_groups[0]["lr"] == 0.1 and not optimizer.state


def fit(b: Bench, *arguments: Any, **options: Any) -> Any:
    return b.tuner.fit_one_cycle(*arguments, **options)


def per_row(outputs: Any, targets: Any) -> Any:
    return cross_entropy(outputs, targets, reduction="none")


def late_failure(b: Bench) -> Any:
    calls = []

    def loss_fn(outputs: Any, targets: Any) -> Any:
        calls.append(1)
        loss = cross_entropy(outputs, targets)
        return loss if len(calls) < 5 else torch.stack([loss, loss])

    return b.find(loss_fn=loss_fn)


nan, inf = math.nan, math.inf
finite = "must be finite and above 0"
rate = "must be finite and not negative, got"
WHOLE = "must be a whole number, "
NO_GRAD = "the loss must depend on a trainable parameter, got one without grad; is the model frozen"

Case = tuple[str, Callable[[Bench], Any], type[Exception], str]
CASES: list[Case] = [
    # Rates.
    ("negative rate", lambda b: b.find_with(lr=-1.0), ValueError, "with a finite learning rate"),
    ("nan rate", lambda b: b.find_with(lr=nan), ValueError, "learning rate above 0.*got .nan"),
    ("zero rates", lambda b: b.find_with(lr=0.0), ValueError, r"rate above 0.*got \[0.0, 0.0, 0"),
    ("max_lr negative", lambda b: fit(b, 1, -1.0), ValueError, f"lr {rate} -1.0"),
    ("max_lr nan", lambda b: fit(b, 1, nan), ValueError, f"lr {rate} nan"),
    (
        "max_lr text",
        lambda b: fit(b, 1, "0.1"),
        TypeError,
        "max_lr must be .*'0.1'; pass 0.1",
    ),
    ("list nan", lambda b: fit(b, 1, [0.1, nan, 1]), ValueError, rf"lr\[1\] {rate} nan"),
    ("short list", lambda b: fit(b, 1, [1.0, 2.0]), ValueError, "one rate per group, got 2 for 3"),
    ("open slice", lambda b: fit(b, 1, slice(1, None)), ValueError, r"slice\(first, last\) or"),
    ("zero slice", lambda b: fit(b, 1, slice(0.0, 1.0)), ValueError, "not be 0 at an end"),
    (
        "slice with one group",
        lambda b: b.tuned(model=b.one_layer).fit_one_cycle(1, slice(1e-4, 1e-2)),
        ValueError,
        "lr must be a number if there is one group, got slice.*pass 0.01",
    ),
    # The sweep.
    ("start zero", lambda b: b.find(start_lr=0), ValueError, f"start_lr {finite}, got 0"),
    ("start negative", lambda b: b.find(start_lr=-1e-3), ValueError, f"start_lr {finite}, got -0"),
    ("end nan", lambda b: b.find(end_lr=nan), ValueError, f"end_lr {finite}, got nan"),
    ("end inf", lambda b: b.find(end_lr=inf), ValueError, f"end_lr {finite}, got inf"),
    ("end below", lambda b: b.find(start_lr=1, end_lr=0.1), ValueError, "end_lr must be above st"),
    ("end at start", lambda b: b.find(start_lr=1, end_lr=1), ValueError, "end_lr must be above st"),
    *[
        (f"num_iter {n!r}", lambda b, n=n: b.find(num_iter=n), ValueError, f"{WHOLE}2 .*got {n!r}")
        for n in (0, 1, -5, True, 2.5, 10.0, "9", None)
    ],
    *[
        (
            f"stop {s}",
            lambda b, s=s: b.find(diverge_threshold=s),
            ValueError,
            f"diverge_threshold .*above 1, got {s}",
        )
        for s in (1.0, 0.5, -4.0, nan, inf)
    ],
    ("beta", lambda b: b.find(beta=1.0), ValueError, r"beta must lie in \[0, 1\), got 1.0"),
    # Losses.
    (
        "vector loss",
        lambda b: b.find(loss_fn=per_row),
        ValueError,
        r"scalar, got shape \(8,\); red",
    ),
    ("later", late_failure, ValueError, r"the loss must be a scalar, got shape \(2,\)"),
    (
        "no grad",
        lambda b: b.find(loss_fn=lambda o, t: cross_entropy(o, t).detach()),
        ValueError,
        NO_GRAD,
    ),
    ("float loss", lambda b: b.find(loss_fn=lambda o, t: 1.0), TypeError, "tensor, got float"),
    ("no loss", lambda b: b.find(loss_fn=lambda o, t: None), TypeError, "tensor, got NoneType"),
    ("neither", lambda b: b.find(loss_fn=None), TypeError, "neither loss_fn.*too many positional"),
    (
        "no loss out",
        lambda b: b.find([b.batches[0][0]], None),
        TypeError,
        r"model must return its loss as a scalar.*got Tensor",
    ),
    ("both", lambda b: b.find(compute_loss=boom), ValueError, "either loss_fn.*got both"),
    ("boom", lambda b: b.find(loss_fn=lambda o, t: boom(o)), RuntimeError, "^boom$"),
    # Data.
    (
        "empty",
        lambda b: b.find([]),
        ValueError,
        "train_loader must yield at least one batch, got none",
    ),
    (
        "spent",
        lambda b: b.find(iter(b.batches)),
        DataExhausted,
        "cannot be iterated again; pass a l",
    ),
    ("empty loader", lambda b: b.find(DataLoader([])), ValueError, "at least one batch, got none"),
    ("one entry", lambda b: b.find([(1,)]), TypeError, "got 1 entries; pass compute_loss"),
    ("dict", lambda b: b.find([{"x": 1}]), TypeError, r"\(inputs, targets\), got dict; pass comp"),
    # Model and optimizer.
    ("nothing trains", frozen, ValueError, "trainable parameters, got none.*unfreeze some"),
    ("foreign optimizer", foreign, ValueError, "optimizer must hold trainable parameters of the m"),
    ("sparse gradients", sparse, RuntimeError, "sparse gradients are not.*build its layer with"),
    # Names.
    ("rule", lambda b: suggest.get("minimun"), ValueError, "got 'minimun'; did you mean 'minimum'"),
    (
        "curve",
        lambda b: LossCurve(3).smoothed("mean"),
        ValueError,
        "method must be 'ema', .*got 'mean'",
    ),
    (
        "slope",
        lambda b: b.find().suggested_lrs("slop"),
        ValueError,
        "rule must be one of.*got 'slop'",
    ),
    ("anneal", lambda b: schedules.one_cycle(9, anneal="cosine"), ValueError, "got 'cosine'"),
    # The fine-tuner.
    *[
        (f"epochs {e!r}", lambda b, e=e: fit(b, e, 0.1), ValueError, f"epochs {WHOLE}1 .*got {e!r}")
        for e in (0, -1, True, 1.5, None)
    ],
    ("fit no epoch", lambda b: b.tuner.fit(0, schedules.cosine(3), 0.1), ValueError, "^epochs"),
    ("pct_start", lambda b: fit(b, 1, 0.1, pct_start=2.0), ValueError, "pct_start must lie in"),
    (
        "no valid",
        lambda b: b.tuner.validate(),
        ValueError,
        "val_loader must be given to the FineTuner",
    ),
    (
        "empty valid",
        lambda b: b.tuned(val_loader=[]).validate(),
        ValueError,
        "val_loader must yield at lea",
    ),
    (
        "unsized",
        lambda b: b.tuned(train_loader=iter(b.batches)),
        TypeError,
        "train_loader must have a length, go",
    ),
    (
        "no train",
        lambda b: b.tuned(train_loader=[]),
        ValueError,
        "train_loader must hold at least one batch",
    ),
    ("no parameters", lambda b: b.tuned(model=nn.ReLU()), ValueError, "model must have parameters"),
    (
        "one group",
        lambda b: b.tuned(model=b.one_layer).freeze(),
        ValueError,
        "a body before the head, got one layer group",
    ),
    ("no group", lambda b: b.tuner.freeze_to(3), ValueError, "from -3 to 2 for 3 groups, got 3"),
    ("option", lambda b: b.tuner.lr_find(num_itr=9), TypeError, "num_itr"),
    ("its sweep", lambda b: b.tuner.lr_find(num_iter=1), ValueError, f"num_iter {WHOLE}2"),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
def test_error(kind: str, case: Case) -> None:
    _, call, error, message = case
    bench = Bench(kind)
    before = trace(bench.model, bench.optimizer)
    with pytest.raises(error) as caught:
        call(bench)
    assert type(caught.value) is error
    assert re.search(message, str(caught.value)), str(caught.value)
    assert trace(bench.model, bench.optimizer) == before
    assert len(bench.tuner.history.stages) == 1


def test_a_loader_without_a_length() -> None:
    with pytest.raises(
        TypeError, match=r"train_loader must have a length.*pass a DataLoader or a list"
    ):
        Bench().tuned(train_loader=DataLoader(Endless(), batch_size=4))


@pytest.mark.parametrize("kind", ["adamw", "torch-sgd"])
def test_a_schedule_that_is_none(kind: str) -> None:
    bench = Bench(kind)
    before = trace(bench.model, bench.optimizer)
    with pytest.raises(
        TypeError,
        match=r"schedule must be an lrfast\.schedules\.Schedule .*; .*get\(",
    ):
        bench.tuner.fit(1, "cosine", 0.5)
    assert trace(bench.model, bench.optimizer) == before


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (per_row, ValueError, "the loss must be a scalar"),
        (lambda outputs, targets: 1.0, TypeError, "the loss must be a tensor"),
        (lambda outputs, targets: cross_entropy(outputs, targets).detach(), ValueError, NO_GRAD),
    ],
)
def test_bad_losses_in_training(loss_fn: Any, error: type[Exception], message: str) -> None:
    bench = Bench()
    bench.tuner.loss_fn = loss_fn
    before = trace(bench.model, bench.optimizer)["parameters"]
    with pytest.raises(error, match=message):
        bench.tuner.fit_one_cycle(1, 0.01)
    assert [p[0] for p in trace(bench.model, bench.optimizer)["parameters"]] == [
        p[0] for p in before
    ]
