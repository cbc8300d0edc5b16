"""Training the head on precomputed features is training the model with its body frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import OPTIMIZERS, bits, cross_entropy, make_batches, make_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lrfast import FineTuner, accuracy, schedules
from lrfast.finetune import Callback


class BodyInEvaluation(Callback):
    """Keeps the frozen norm in evaluation mode, as features are computed."""

    def on_epoch_begin(self, tuner: FineTuner, epoch: int) -> None:
        tuner.model.get_submodule("0.1").eval()


class Interrupter(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        if step == self.at:
            raise KeyboardInterrupt


def make_tuner(kind: str = "adamw", train_loader: Any = None, **options: Any) -> FineTuner:
    """A model of body and head, the latter with dropout and a norm, at its seed."""
    torch.manual_seed(4)
    plain = make_model()
    model = nn.Sequential(plain[:4], nn.Sequential(nn.Dropout(0.3), plain[4:]))
    valid = make_batches(2)
    return FineTuner(
        model,
        make_batches(5) if train_loader is None else train_loader,
        valid,
        **{
            "loss_fn": cross_entropy,
            "optimizer": OPTIMIZERS[kind],
            "metrics": {"accuracy": accuracy},
            "groups": [model[0], model[1]],
            "progress": False,
        }
        | options,
    )


def shuffled() -> DataLoader[Any]:
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(8))
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    return DataLoader(data, batch_size=7, shuffle=True)


def parameters(tuner: FineTuner) -> Any:
    return bits([*tuner.model.parameters(), *tuner.model.buffers()])


OPTIONS: list[dict[str, Any]] = [
    {},
    {
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "ema_decay": 0.8,
        "keep_best": "valid_loss",
    },
    {"amp": torch.bfloat16},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "all", "bf16"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_batches_give_the_same_bits(kind: str, options: dict[str, Any]) -> None:
    runs = []
    for precompute in (False, True):
        tuner = make_tuner(kind, callbacks=[BodyInEvaluation()], **options)
        tuner.freeze()
        body = bits(list(tuner.model[0].parameters()) + list(tuner.model[0].buffers()))
        stage = tuner.fit_one_cycle(3, 0.05, precompute=precompute)
        assert body == bits(list(tuner.model[0].parameters()) + list(tuner.model[0].buffers()))
        if tuner.best is not None:
            tuner.restore_best()
        runs.append((stage.losses.tolist(), stage.epochs, parameters(tuner), torch.rand(1)))
    assert runs[0] == runs[1]
    assert runs[0][0][0] != runs[0][0][-1]


def test_a_shuffled_loader_keeps_its_order() -> None:
    losses, rest = [], []
    for precompute in (False, True):
        tuner = make_tuner(train_loader=shuffled(), callbacks=[BodyInEvaluation()])
        tuner.freeze()
        losses.append(tuner.fit_one_cycle(3, 0.05, precompute=precompute).losses)
        rest.append(torch.rand(1))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert rest[0] == rest[1]


def test_the_body_runs_once() -> None:
    tuner = make_tuner()
    tuner.freeze()
    calls = []
    tuner.model[0][0].register_forward_hook(lambda *args: calls.append(tuner.model.training))
    tuner.fit_one_cycle(4, 0.05, precompute=True)
    assert calls == [False] * 7
    assert tuner.validate() == {key: tuner.history.epochs[-1][key] for key in tuner.validate()}


def test_saved_and_resumed(tmp_path: Path) -> None:
    plain = make_tuner(train_loader=shuffled())
    plain.freeze()
    plain.fit_one_cycle(3, 0.05, precompute=True)
    tuner = make_tuner(train_loader=shuffled(), callbacks=[Interrupter(8)])
    tuner.freeze()
    with pytest.raises(KeyboardInterrupt):
        tuner.fit_one_cycle(3, 0.05, precompute=True)
    tuner.save(tmp_path / "half.pt")
    fresh = make_tuner(train_loader=shuffled(), callbacks=[Interrupter(0)])
    fresh.load(tmp_path / "half.pt")
    fresh.resume()
    assert parameters(fresh) == parameters(plain)
    assert fresh.history.losses.tolist() == plain.history.losses.tolist()


class Stream(IterableDataset[Any]):
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter(make_batches(3))


class Endless:
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter(make_batches(3))


def call_of_another_kind() -> FineTuner:
    class Branching(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) * 2

    model = Branching(nn.Linear(4, 4), nn.Linear(4, 3))
    return FineTuner(model, make_batches(1), loss_fn=cross_entropy, progress=False)


def tied() -> FineTuner:
    first = nn.Linear(4, 4)
    model = nn.Sequential(first, nn.Linear(4, 4), first, nn.Linear(4, 3))
    return FineTuner(model, make_batches(1), loss_fn=cross_entropy, progress=False)


BAD: list[tuple[Any, Any, Any, str]] = [
    (make_tuner, 0, {}, "precompute needs a frozen body, got none"),
    (call_of_another_kind, -1, {}, "precompute needs an nn.Sequential.*got Branching"),
    (make_tuner, -1, {"timetable": {1: 0}}, "precompute needs a body that stays frozen"),
    (lambda: make_tuner(train_loader=DataLoader(Stream(), batch_size=None)), -1, {}, "map-style"),
    (
        lambda: make_tuner(train_loader=Endless()),
        -1,
        {},
        "precompute needs train_loader to be a DataLoader",
    ),
    (
        lambda: make_tuner(loss_fn=None, metrics={}, compute_loss=lambda model, batch: batch),
        *(-1, {}, "precompute needs loss_fn"),
    ),
]


@pytest.mark.parametrize(("make", "first", "options", "message"), BAD)
def test_what_cannot_be_precomputed(make: Any, first: int, options: Any, message: str) -> None:
    tuner = make()
    tuner.freeze_to(first)
    before = parameters(tuner), [group["lr"] for group in tuner.optimizer.param_groups]
    with pytest.raises((TypeError, ValueError), match=message):
        tuner.fit(2, schedules.constant(), precompute=True, **options)
    assert (parameters(tuner), [group["lr"] for group in tuner.optimizer.param_groups]) == before
    assert tuner.history.stages == []


def test_a_head_that_uses_the_body_again() -> None:
    tuner = tied()
    tuner.model[0].requires_grad_(False)
    tuner.model[1].requires_grad_(True)
    with pytest.raises(ValueError, match="shares no parameter with the body"):
        tuner.fit(1, schedules.constant(), precompute=True)


def test_a_chain_with_hooks_is_run_as_it_is() -> None:
    """A hook on the model itself would not be called for its parts."""
    tuner = make_tuner()
    tuner.freeze()
    tuner.model.register_forward_hook(lambda module, args, outputs: 2 * outputs)
    with pytest.raises(TypeError, match=r"precompute needs an nn\.Sequential"):
        tuner.fit(1, schedules.constant(), precompute=True)
