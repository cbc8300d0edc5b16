"""EMA of buffers: torch's and timm's numbers, skipped steps, checkpoints, captures' memory."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from device_reads import NoDeviceReads
from reference.optimizers import decay_at
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import lrfast

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"ema_decay": 0.7},
    "late": {"ema_decay": 0.7, "ema_start": 3},
    "warm": {"ema_decay": 0.3, "ema_warmup": True},
    "late and warm": {"ema_decay": 0.3, "ema_start": 2, "ema_warmup": True},
}
AVERAGED = ("1.running_mean", "1.running_var", "level")


def make_model() -> nn.Module:
    """Batch norm, a constant with infinities, a half buffer, and two that have no average."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3))
    model.register_buffer("level", torch.ones(5, dtype=torch.bfloat16))
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    model.register_buffer("cache", torch.ones(2), persistent=False)
    return model


def make_optimizer(model: nn.Module, **options: Any) -> lrfast.SGD:
    return lrfast.SGD(model.parameters(), lr=0.3, momentum=0.8, **options)


def train_step(model: nn.Module, optimizer: Any, scale: float = 1.0) -> None:
    model.level += torch.randn(5).bfloat16()  # type: ignore[operator]
    (model(torch.randn(6, 3) + 0.5).square().mean() * scale).backward()
    optimizer.step()
    optimizer.zero_grad()


def buffers_within(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    with optimizer.ema_parameters():
        return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_averages_are_those_of_torchs_averaged_model() -> None:
    """Parameters and buffers at once; the counter stays the model's own."""
    model = make_model()
    del model._buffers["level"], model._buffers["mask"]  # torch's would be NaN, and stand still
    optimizer = make_optimizer(model, ema_decay=0.7)
    optimizer.average_buffers(model)
    other = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    other.n_averaged.fill_(1)  # it starts at the model as it is, not at the first update
    for _ in range(7):
        (model(torch.randn(6, 3) + 0.5).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        other.update_parameters(model)
    counter = int(model[1].num_batches_tracked)  # type: ignore[index]
    with optimizer.ema_parameters():
        wanted = other.module.state_dict()
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value, wanted[name])
        assert int(model[1].num_batches_tracked) == counter == 7  # type: ignore[index]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("order", ["registered first", "loaded first"])
def test_averages_follow_the_options_over_a_checkpoint(name: str, order: str) -> None:
    options, model = OPTIONS[name], make_model()
    optimizer = make_optimizer(model, **options)
    optimizer.average_buffers(model)
    averages = {k: b.float().clone() for k, b in model.named_buffers() if k in AVERAGED}
    for step in range(8):
        train_step(model, optimizer)
        own = {key: buffer.clone() for key, buffer in model.named_buffers()}
        for key, average in averages.items():
            averages[key] = average.lerp(own[key].float(), 1 - decay_at(step, **options))
        seen = buffers_within(model, optimizer)
        for key, value in own.items():
            wanted = averages[key].to(value.dtype) if key in averages else value
            torch.testing.assert_close(seen[key], wanted)
            if step < options.get("ema_start", 0):
                assert torch.equal(seen[key], value)
        assert not torch.equal(seen["level"], own["level"]) or step < options.get("ema_start", 0)
        for key, buffer in model.named_buffers():
            assert torch.equal(buffer, own[key])
        if step == 4:
            file = io.BytesIO()
            torch.save([model.state_dict(), optimizer.state_dict()], file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            model = make_model()
            optimizer = make_optimizer(model, **options)
            if order == "registered first":
                optimizer.average_buffers(model)
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            if order == "loaded first":
                assert "ema_buffers" in optimizer.state_dict()["lrfast"]
                optimizer.average_buffers(model)


@pytest.mark.parametrize("poison", [torch.inf, torch.nan])
def test_a_skipped_step_moves_no_average(poison: float) -> None:
    """The buffers of such a step may be NaN themselves."""
    model = make_model()
    optimizer = make_optimizer(
        model, skip_nonfinite=True, ema_decay=0.6, ema_warmup=True, ema_start=1
    )
    optimizer.average_buffers(model)
    for _ in range(3):
        train_step(model, optimizer)
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = buffers_within(model, optimizer)
    model[1].running_mean.fill_(poison)  # type: ignore[index]
    train_step(model, optimizer, scale=poison)
    after = buffers_within(model, optimizer)
    for name in AVERAGED:
        assert torch.equal(after[name], before[name])
    model.load_state_dict(kept, strict=False)
    train_step(model, optimizer)
    moved = buffers_within(model, optimizer)["1.running_var"]
    own = model[1].running_var  # type: ignore[index]
    # The step's number counts applied steps, so that the skipped one warmed nothing up.
    decay = decay_at(3, 0.6, 1, True)
    torch.testing.assert_close(moved, before["1.running_var"].lerp(own, 1 - decay))


def test_buffers_of_frozen_groups_move_too() -> None:
    model = make_model()
    head = nn.Parameter(torch.ones(4))
    groups: list[dict[str, Any]] = [
        {"params": list(model.parameters()), "frozen": True},
        {"params": [head]},
    ]
    optimizer = lrfast.AdamW(groups, lr=0.3, ema_decay=0.8)
    optimizer.average_buffers(model)
    wanted = model[1].running_mean.clone()  # type: ignore[index]
    for _ in range(3):
        (model(torch.randn(6, 3)) * head).square().sum().backward()
        optimizer.step()
        wanted.lerp_(model[1].running_mean, 1 - 0.8)  # type: ignore[index]
    torch.testing.assert_close(buffers_within(model, optimizer)["1.running_mean"], wanted)


def continued(kind: str, model: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
    """Return the two after something that must not change how they go on."""
    if kind == "copied":
        return copy.deepcopy((model, optimizer))
    if kind == "pickled":
        pair: tuple[nn.Module, Any] = pickle.loads(pickle.dumps((model, optimizer)))
        return pair
    if kind == "swept":
        batches = [(torch.randn(6, 3), torch.randn(6, 4))] * 12
        loss = nn.functional.mse_loss
        lrfast.lr_find(model, optimizer, batches, loss, num_iter=12, progress=False)
    if kind == "exchanged":  # as model.to() does it
        norm = model[1]  # type: ignore[index]
        norm.running_mean = norm.running_mean.clone()
    if kind == "refused load":
        state = optimizer.state_dict()
        state["lrfast"]["ema_buffers"] = {
            name: value + 1 for name, value in state["lrfast"]["ema_buffers"].items()
        }

        def fail(_: Any) -> None:
            raise KeyError

        with (
            pytest.raises(KeyError),
            optimizer.register_load_state_dict_post_hook(fail),
        ):
            optimizer.load_state_dict(state)
    return model, optimizer


@pytest.mark.parametrize("kind", ["copied", "pickled", "swept", "exchanged", "refused load"])
def test_averages_go_on_unchanged(kind: str) -> None:
    found = []
    for does_it in (False, True):
        torch.manual_seed(5)
        model = make_model()
        optimizer = make_optimizer(model, ema_decay=0.7, ema_warmup=True)
        optimizer.average_buffers(model)
        for _ in range(3):
            train_step(model, optimizer)
        if does_it:
            model, optimizer = continued(kind, model, optimizer)
        torch.manual_seed(7)
        for _ in range(3):
            train_step(model, optimizer)
        found.append(buffers_within(model, optimizer))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
)
def test_small_moves_of_half_buffers_add_up(dtype: torch.dtype, kept: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(dtype)
    optimizer = make_optimizer(model, ema_decay=0.999)
    optimizer.average_buffers(model)
    norm: Any = model[1]
    norm.running_mean.fill_(1.0)
    optimizer.average_buffers(model)
    norm.running_mean.fill_(2.0)
    norm.eval()
    for _ in range(9):
        model(torch.randn(6, 3, dtype=dtype)).sum().backward()
        optimizer.step()
    average = optimizer.state_dict()["lrfast"]["ema_buffers"]["1.running_mean"]
    assert average.dtype == kept
    torch.testing.assert_close(average, torch.full((4,), 2 - 0.999**9, dtype=kept))
    assert norm.running_mean.dtype == dtype


def test_wrappers_do_not_change_the_names() -> None:
    model = make_model()
    optimizer = make_optimizer(model, ema_decay=0.7)
    optimizer.average_buffers(nn.ModuleDict({"module": model}))
    train_step(model, optimizer)
    plain = make_optimizer(model, ema_decay=0.7)
    plain.average_buffers(model)
    plain.load_state_dict(optimizer.state_dict())
    for name, value in buffers_within(model, optimizer).items():
        assert torch.equal(value, buffers_within(model, plain)[name])


def test_a_state_dict_without_averages_starts_them_at_the_buffers() -> None:
    model = make_model()
    optimizer = make_optimizer(model, ema_decay=0.7)
    saved = optimizer.state_dict()
    optimizer.average_buffers(model)
    train_step(model, optimizer)
    model.level.fill_(3.0)  # type: ignore[operator]
    optimizer.load_state_dict(saved)
    assert torch.equal(buffers_within(model, optimizer)["level"], torch.full((5,), 3.0).bfloat16())


SAVED: dict[str, tuple[Any, str]] = {
    "no dict": ([1], "ema_buffers must be a dict"),
    "no tensor": ({"level": 3}, "ema_buffers.'level'. must be a"),
    "integers": ({"level": torch.ones(5, dtype=torch.int64)}, "must be of a floating-point dtype"),
    "others": ({"level": torch.ones(5), "x": torch.ones(1)}, r"which lack \['1.running_mean'"),
    "shape": (
        {
            "level": torch.ones(4),
            "mask": torch.ones(2),
            **{f"1.running_{name}": torch.ones(4) for name in ("mean", "var")},
        },
        r"ema_buffers\['level'\] must have its buffer's shape \[5\]",
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_broken_averages_are_refused_and_nothing_changes(name: str) -> None:
    value, message = SAVED[name]
    model = make_model()
    optimizer = make_optimizer(model, ema_decay=0.7)
    optimizer.average_buffers(model)
    train_step(model, optimizer)
    before = buffers_within(model, optimizer)
    state = optimizer.state_dict()
    state["lrfast"]["ema_buffers"] = value
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.load_state_dict(state)
    after = buffers_within(model, optimizer)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_misuse_is_refused_before_anything_changes() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="ema_decay must be set to average weights, got None"):
        make_optimizer(model).average_buffers(model)
    optimizer = make_optimizer(model, ema_decay=0.7)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        optimizer.average_buffers(model.parameters())  # type: ignore[arg-type]
    optimizer.average_buffers(model)
    train_step(model, optimizer)
    model.level = torch.ones(6, dtype=torch.bfloat16)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    message = r"buffer 'level' must keep its shape \[5\], got \[6\]; call average_buffers\(model\)"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    optimizer.average_buffers(model)
    optimizer.step()


def test_a_captured_step_averages_and_keeps_its_buffers() -> None:
    """A graph would go on writing to the averages of before."""
    found = []
    for captures in (False, True):
        torch.manual_seed(3)
        model = make_model()
        optimizer = make_optimizer(model, ema_decay=0.7, ema_warmup=True)
        optimizer.average_buffers(model)

        def step(inputs: Tensor, model: nn.Module = model, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad(set_to_none=False)
            loss: Tensor = model(inputs).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        run: Any = lrfast.capture(step, optimizer, torch.ones(6, 3)) if captures else step
        for _ in range(4):
            run(torch.randn(6, 3))
        if captures:
            with pytest.raises(ValueError, match=r"must be called before lrfast\.capture"):
                optimizer.average_buffers(model)
            run.release()
        found.append(buffers_within(model, optimizer))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])


def test_a_step_reads_nothing_from_the_device() -> None:
    model = make_model()
    optimizer = make_optimizer(model, ema_decay=0.7, ema_warmup=True, ema_start=1)
    optimizer.average_buffers(model)
    with NoDeviceReads():
        for _ in range(4):
            train_step(model, optimizer)
