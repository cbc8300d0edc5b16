"""What one of two processes does in Hugging Face's Trainer and Accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sharded_runs import Counter, full
from trainer_ranks import BATCH, EPOCHS, NORM, UPDATES, Seen, curve, parameters
from trainers import cross_entropy, load, make_loader, make_model, with_ours, with_theirs

import lrfast

# Hugging Face's Trainer.

# In one process as in two: no random numbers of each, and losses as they are.
ALIKE = {"dropout": 0.0, "average_tokens_across_devices": False, "max_grad_norm": 0.1}


def train_trainer(folder: Path, **options: Any) -> Seen:
    """A training by Trainer's own means."""
    load("transformers")
    from huggingface_runs import make_trainer

    return trained(make_trainer(folder, **ALIKE, **options))


def trained(trainer: Any, **options: Any) -> Seen:
    trainer.train(**options)
    compared = ("loss", "grad_norm", "learning_rate")
    logs = [[row[name] for name in compared] for row in trainer.state.log_history if "loss" in row]
    inner = trainer.optimizer.optimizer
    states = [inner.state[p]["exp_avg"] for group in inner.param_groups for p in group["params"]]
    return {
        "params": parameters(trainer.model),
        "states": [full(state) for state in states],
        "logs": np.array(logs, dtype=float),
        "clock": getattr(inner, "schedule_step", None),
        "kinds": {type(parameter).__name__ for parameter in inner.state},
    }


@contextmanager
def pretended_gpus() -> Iterator[None]:
    """Accelerate shards on GPUs only: let it take our processes for such."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    plain = PartialState.__init__

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = __init__
    try:
        yield
    finally:
        PartialState.__init__ = plain


def run_huggingface(folder: Path) -> Seen:
    load("transformers")
    from huggingface_runs import make_trainer

    from lrfast.integrations import huggingface

    def make(name: str, **options: Any) -> Any:
        return make_trainer(folder / name, **ALIKE, **options)

    def use(name: str, **options: Any) -> Any:
        return huggingface.use(make(name, **options), ema_decay=0.9)

    def compare(kind: str, **options: Any) -> Seen:
        """Theirs and ours; ours again from a checkpoint, and with a range test in between."""
        saving = options | {"save_strategy": "steps", "save_steps": 3}
        seen = {"theirs": trained(make(f"{kind} theirs", **options))}
        with Counter() as collectives:
            seen["ours"] = trained(use(f"{kind} ours", **saving))
        at = folder / f"{kind} ours" / "checkpoint-3"
        seen["resumed"] = trained(use(f"{kind} again", **saving), resume_from_checkpoint=str(at))
        tested, results = use(f"{kind} tested", **options), []
        if kind == "ddp":
            results.append(huggingface.lr_find(tested, num_iter=12))
        finder = huggingface.LRFindCallback(tested, epochs=(1,), num_iter=12)
        finder._take = lambda result, *_: results.append(result)  # and applies nothing
        tested.add_callback(finder)
        seen["tested"] = trained(tested)
        seen["collectives"] = collectives.calls
        seen["curves"] = [curve(result) for result in results]
        return seen

    seen = {"ddp": compare("ddp")}
    sharding = {
        "transformer_layer_cls_to_wrap": "BertLayer",
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    with pretended_gpus():
        seen["fsdp"] = compare("fsdp", fsdp=True, fsdp_config=sharding)
    return seen


# Accelerate.


def accelerated(
    ours: bool,
    folder: Path | None = None,
    resume: bool = False,
    plugin: Any = None,
    batch: int = BATCH,
    look: Callable[..., Any] | None = None,
) -> Seen:
    """A training; it is saved after 3 updates, or goes on from what was saved then."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from lrfast.integrations.accelerate import clip_in_step

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    plain = make_model()
    optimizer, scheduler = (with_ours if ours else with_theirs)(plain, UPDATES)
    loader = make_loader(batch)
    if ours:
        clip_in_step(accelerator, optimizer)  # before the parameters are exchanged for shards
    model, optimizer, loader = accelerator.prepare(plain, optimizer, loader)
    accelerator.register_for_checkpointing(scheduler)
    first, norms = 0, []
    if resume:
        accelerator.load_state(str(folder))
        first = 3
    for update, (inputs, targets) in enumerate(batch for _ in range(EPOCHS) for batch in loader):
        if update < first:
            continue
        if look is not None and update == 4:
            look(accelerator, model, optimizer.optimizer, loader)
        accelerator.backward(cross_entropy(model(inputs), targets))
        norm = accelerator.clip_grad_norm_(model.parameters(), NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        norms.append(float(full(norm)))
        if folder is not None and not resume and update == 2:
            accelerator.save_state(str(folder))
    clock = getattr(optimizer.optimizer, "schedule_step", None)
    kinds = {type(parameter).__name__ for parameter in model.parameters()}
    return {"params": parameters(model), "norms": norms, "clock": clock, "kinds": kinds}


def run_accelerate(folder: Path) -> Seen:
    load("accelerate")
    from accelerate.utils import FullyShardedDataParallelPlugin

    from lrfast.integrations.accelerate import undisturbed

    def compare(kind: str, **options: Any) -> Seen:
        curves: list[dict[str, Any]] = []

        def look(accelerator: Any, model: Any, optimizer: Any, loader: Any) -> None:
            with undisturbed(accelerator):
                options = {"num_iter": 12, "progress": False}
                result = lrfast.lr_find(model, optimizer, loader, cross_entropy, **options)
            curves.append(curve(result))

        seen = {"theirs": accelerated(False, **options)}
        with Counter() as collectives:
            seen["ours"] = accelerated(True, folder / f"{kind} state", **options)
        seen["resumed"] = accelerated(True, folder / f"{kind} state", resume=True, **options)
        seen["tested"] = accelerated(True, look=look, **options)
        return seen | {"curves": curves, "collectives": collectives.calls}

    seen = {"ddp": compare("ddp")}
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="size_based_wrap",
        min_num_params=100,
        state_dict_type="SHARDED_STATE_DICT",
    )
    with pretended_gpus():
        return seen | {"fsdp": compare("fsdp", plugin=plugin)}
