"""What `lrfast.snapshot` covers of model and optimizer: each item fails a test when it is lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_runs import Small, bits, build, sweep

from lrfast.snapshot import Snapshot, preserved


def test_parameters_and_buffers_keep_identity_values_and_views() -> None:
    run = build()
    tensors = {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())}
    values = bits(tensors)
    view = run.model.encoder.weight.detach()[0]
    with preserved(run.model, run.optimizer):
        sweep(run)
        with torch.no_grad():
            run.model.frozen.weight.fill_(7)
            run.model.expanded = torch.ones(3)
            tensors["expanded"].narrow(0, 0, 1).fill_(7)
        run.model.cache = torch.ones(1)
        run.model.register_buffer("late", torch.ones(1))
        run.model.decoder.weight = nn.Parameter(torch.ones(4, 4))
    after = {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())}
    assert bits(after) == values
    assert all(after[name] is tensors[name] for name in tensors)
    assert run.model.decoder.weight is run.model.encoder.weight
    assert view.data_ptr() == run.model.encoder.weight.data_ptr()
    assert run.model.cache is None


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and its tables are no dicts
def test_scripted_modules() -> None:
    model = torch.jit.script(nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = bits([list(model.parameters()), list(model.buffers())])
    with preserved(model, optimizer):
        model(torch.rand(4, 2)).square().sum().backward()
        optimizer.step()
    assert bits([list(model.parameters()), list(model.buffers())]) == before


def test_tied_parameters_are_held_once() -> None:
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    optimizer = torch.optim.SGD(tied.parameters(), lr=0.1)
    assert Snapshot(tied, optimizer).nbytes == 4 * 4


def test_parameters_that_only_the_optimizer_knows(small: Small) -> None:
    model, optimizer = small
    extra = nn.Parameter(torch.ones(2))
    extra.grad = torch.full((2,), 3.0)
    optimizer.add_param_group({"params": [extra]})
    with preserved(model, optimizer):
        extra.grad = None
        with torch.no_grad():
            extra.fill_(7)
        extra.requires_grad_(False)
    assert bits(extra) == bits(torch.ones(2))
    assert bits(extra.grad) == bits(torch.full((2,), 3.0))
    assert extra.requires_grad


def test_gradients_that_existed_keep_object_and_values(small: Small) -> None:
    model, optimizer = small
    model(torch.ones(1, 2)).sum().backward()
    grads = [p.grad for p in model.parameters()]
    values = bits(grads)
    with preserved(model, optimizer):
        model(torch.ones(1, 2)).sum().backward()  # adds in place
        assert bits(grads) != values
        optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert bits(grads) == values


def test_gradients_that_did_not_exist_are_none_again(small: Small) -> None:
    model, optimizer = small
    with preserved(model, optimizer):
        model(torch.ones(1, 2)).sum().backward()
    assert [p.grad for p in model.parameters()] == [None, None]


def test_sparse_gradients() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.tensor([1, 1, 3])).sum().backward()
    grad = model.weight.grad
    assert grad is not None
    values = bits([grad._indices(), grad._values()])
    with preserved(model, optimizer) as snapshot:
        model(torch.tensor([0, 4])).sum().backward()
    assert model.weight.grad is grad
    assert bits([grad._indices(), grad._values()]) == values
    assert snapshot.nbytes == 5 * 2 * 4 + 3 * 2 * 4 + 3 * 8


def test_requires_grad_flags() -> None:
    run = build()
    flags = [p.requires_grad for p in run.model.parameters()]
    with preserved(run.model, run.optimizer):
        run.model.frozen.requires_grad_(True)
        run.model.encoder.requires_grad_(False)
    assert [p.requires_grad for p in run.model.parameters()] == flags


def test_train_and_eval_flags_of_every_submodule() -> None:
    run = build()
    flags = [m.training for m in run.model.modules()]
    assert len(set(flags)) == 2
    for change in (run.model.train, run.model.eval):
        with preserved(run.model, run.optimizer):
            change()
        assert [m.training for m in run.model.modules()] == flags


def test_the_flag_of_a_wrapper_whose_attributes_are_its_own() -> None:
    model = nn.DataParallel(nn.Linear(2, 1))
    with preserved(model, torch.optim.SGD(model.parameters(), lr=0.1)):
        model.eval()
    assert model.training and model.module.training


def test_optimizer_state_that_did_not_exist_is_removed(small: Small) -> None:
    model, optimizer = small
    state = optimizer.state
    with preserved(model, optimizer):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert len(optimizer.state) == 2
    assert optimizer.state is state
    assert len(state) == 0


def test_nested_optimizer_state(small: Small) -> None:
    model, optimizer = small
    kept = torch.ones(2)
    generator = torch.Generator().manual_seed(5)
    draws = generator.get_state()
    entry = optimizer.state[model.weight]
    entry.update(
        step=5,
        decay=0.5,
        deep={"moments": [kept, {"pair": (kept, torch.zeros(1))}], "n": 1},
        generator=generator,
    )
    entry["itself"] = entry  # sharing and cycles are no trouble
    moments = entry["deep"]["moments"]
    with preserved(model, optimizer):
        torch.rand(1, generator=generator)
        kept.fill_(7)
        moments[1]["pair"][1].fill_(7)
        moments[1]["new"] = 1
        moments[0] = torch.zeros(9)
        moments.append(1)
        del entry["decay"]
        entry.update(step=6, deep={})
    assert optimizer.state[model.weight] is entry
    assert (entry["step"], entry["decay"], entry["deep"]["n"]) == (5, 0.5, 1)
    assert entry["deep"]["moments"] is moments
    assert len(moments) == 2
    assert moments[0] is kept is moments[1]["pair"][0]
    assert list(moments[1]) == ["pair"]
    assert bits([kept, moments[1]["pair"][1]]) == bits([torch.ones(2), torch.zeros(1)])
    assert bits(generator.get_state()) == bits(draws)


def test_state_and_groups_bound_anew_by_load_state_dict(small: Small) -> None:
    model, optimizer = small
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state, groups = optimizer.state, optimizer.param_groups
    values = bits(optimizer.state_dict())
    with preserved(model, optimizer):
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
    assert optimizer.state is state
    assert optimizer.param_groups is groups
    assert bits(optimizer.state_dict()) == values


def test_param_groups(small: Small) -> None:
    model, optimizer = small
    (group,) = optimizer.param_groups
    rate = torch.tensor(0.1)
    group["lr"] = rate
    with preserved(model, optimizer):
        rate.fill_(7)
        group.update(lr=7.0, momentum=0.5, initial_lr=7.0)
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        group["params"].pop()
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0] is group
    assert group["lr"] is rate
    assert bits(rate) == bits(torch.tensor(0.1))
    assert group["momentum"] == 0.9
    assert "initial_lr" not in group
    assert len(group["params"]) == 2
