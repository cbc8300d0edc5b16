"""What one of two processes does in Lightning, replicated and sharded, in Ignite and in fastai."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sharded_runs import Counter
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import TensorDataset
from trainer_ranks import BATCH, EPOCHS, NORM, ROWS, UPDATES, Seen, curve, own_share, parameters
from trainers import cross_entropy, load, make_loader, make_model, with_ours, with_theirs

# Lightning.


def lit(
    ours: bool,
    folder: Path | None = None,
    resume: bool = False,
    batch: int = BATCH,
    finder: Any = None,
    **options: Any,
) -> Seen:
    """A training; it is saved after the first epoch, or goes on from what was saved then."""
    pl = load("lightning").pytorch
    from lrfast.integrations.lightning import ClipInStep

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_model()

        def training_step(self, batch: list[Tensor]) -> Tensor:
            return cross_entropy(self.net(batch[0]), batch[1])

        def configure_model(self) -> None:
            if self.device_mesh is not None:
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def configure_optimizers(self) -> Any:
            made = (with_ours if ours else with_theirs)(self, UPDATES)
            optimizer, scheduler = made
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    callbacks = [ClipInStep()] if ours else []
    if folder is not None and not resume:
        callbacks.append(
            pl.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1)
        )
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=callbacks + ([] if finder is None else [finder]),
        gradient_clip_val=NORM,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=folder is not None and not resume,
        **options,
    )
    module = Module()
    at = folder / "epoch=0.ckpt" if folder is not None and resume else None
    trainer.fit(module, own_share(batch), ckpt_path=at)
    optimizer = trainer.optimizers[0]
    kinds = {type(parameter).__name__ for parameter in module.parameters()}
    clock = getattr(optimizer, "schedule_step", None)
    return {"params": parameters(module), "clock": clock, "kinds": kinds}


def run_lightning(folder: Path) -> Seen:
    load("lightning")
    from lightning.pytorch.strategies import ModelParallelStrategy

    from lrfast.integrations.lightning import LRFindCallback

    def compare(kind: str, make_strategy: Callable[[], Any]) -> Seen:
        def run(ours: bool, *args: Any, **options: Any) -> Seen:
            return lit(ours, *args, strategy=make_strategy(), devices=2, **options)

        finder, results = LRFindCallback(epochs=(1,), num_iter=12), []
        finder._take = lambda result, *_: results.append(result)  # and applies nothing
        seen = {"theirs": run(False)}
        with Counter() as collectives:
            seen["ours"] = run(True, folder / kind)
        seen["resumed"] = run(True, folder / kind, resume=True)
        seen["tested"] = run(True, finder=finder)
        curves = [curve(result) for result in results]
        return seen | {"curves": curves, "collectives": collectives.calls}

    return {
        "ddp": compare("ddp", lambda: "ddp"),
        "fsdp": compare("fsdp", lambda: ModelParallelStrategy(2, 1)),
    }


# Ignite and fastai.


def ignited(
    ours: bool,
    folder: Path | None = None,
    resume: bool = False,
    batch: int = BATCH,
    finder_of: Callable[[Any, Any], Any] | None = None,
) -> Seen:
    """A training; it is saved after the first epoch, or goes on from what was saved then."""
    engine = load("ignite").engine
    import ignite.distributed as idist
    from ignite.handlers import Checkpoint

    model = idist.auto_model(make_model())
    optimizer, scheduler = (with_ours if ours else with_theirs)(model, UPDATES)
    optimizer = idist.auto_optim(optimizer)
    if ours:
        optimizer.max_grad_norm = NORM

    def step(engine: Any, batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        if not ours:
            nn.utils.clip_grad_norm_(model.parameters(), NORM)
        optimizer.step()
        return loss.detach()

    trainer = engine.Engine(step)
    trainer.add_event_handler(engine.Events.ITERATION_COMPLETED, lambda: scheduler.step())
    kept = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "trainer": trainer}
    if folder is not None and not resume:
        saver = Checkpoint(kept, str(folder), filename_pattern="saved.pt")
        trainer.add_event_handler(engine.Events.EPOCH_COMPLETED(once=1), saver)
    if resume:
        Checkpoint.load_objects(kept, torch.load(folder / "saved.pt", weights_only=True))
    if finder_of is not None:
        finder_of(model, optimizer).attach(trainer)
    trainer.run(own_share(batch), max_epochs=EPOCHS)
    return {"params": parameters(model), "clock": getattr(optimizer, "schedule_step", None)}


def run_ignite(folder: Path) -> Seen:
    load("ignite")
    from lrfast.integrations.ignite import LRFindHandler

    results: list[Any] = []

    def finder_of(model: Any, optimizer: Any) -> Any:
        finder = LRFindHandler(model, optimizer, num_iter=12, progress=False)
        finder._take = lambda result, *_: results.append(result)  # and applies nothing
        return finder

    seen = {"theirs": ignited(False), "ours": ignited(True, folder)}
    seen["resumed"] = ignited(True, folder, resume=True)
    seen["tested"] = ignited(True, finder_of=finder_of)
    return {"ddp": seen | {"curves": [curve(result) for result in results]}}


def learned(ours: bool, batch: int = BATCH, finds: bool = False) -> Seen:
    """A one-cycle training; or a range test before it."""
    load("fastai")
    from fastai.callback.training import GradientClip
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader as TheirLoader
    from fastai.distributed import DistributedDL
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    from lrfast.integrations import fastai as integration

    def broadcast(self: Any, values: Any, rank: int) -> Any:
        tensor = torch.as_tensor(values)  # fastai's own puts it onto a GPU
        dist.broadcast(tensor, rank)
        return tensor.tolist()

    DistributedDL._broadcast = broadcast

    def theirs(params: Any, **options: Any) -> Any:
        return OptimWrapper(params, torch.optim.AdamW, **options)

    rows = torch.arange(ROWS)
    if not dist.is_initialized():  # each of two has one half of the data
        rows = rows.reshape(2, -1, BATCH).transpose(0, 1).flatten()
    data = TheirLoader(TensorDataset(*make_loader().dataset[rows]), bs=batch)
    learner = Learner(
        DataLoaders(data, data),
        make_model(),
        nn.CrossEntropyLoss(),
        opt_func=integration.opt_func(max_grad_norm=NORM) if ours else theirs,
        cbs=[] if ours else [GradientClip(NORM)],
    )
    if dist.is_initialized():
        learner.to_distributed(sync_bn=False, cpu=True)
    seen: dict[str, Any] = {"curves": []}
    if finds:
        seen["curves"].append(curve(integration.lr_find(learner, num_iter=12, progress=False)))
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(EPOCHS, 1e-2)
    return seen | {"params": parameters(learner.model)}


def run_fastai(folder: Path) -> Seen:
    seen = {"theirs": learned(False), "ours": learned(True), "tested": learned(True, finds=True)}
    return {"ddp": seen | {"curves": seen["tested"].pop("curves")}}
