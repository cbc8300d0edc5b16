"""Inside trainers with two processes: equal to one process, and to the library's own AdamW.

Each library trains replicated (DistributedDataParallel) and, where it can, sharded (FSDP 2), clips
inside the step, is saved and resumed, and has a range test before or amid its training.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hugging_face_ranks
import numpy as np
import pytest
import run_and_exit
import torch.distributed as dist
import trainer_ranks
import trainer_ranks_others
from processes import spawn
from tiny import bits
from trainer_ranks import BATCH, UPDATES, Seen
from trainers import EXAMPLES, check_processes, load, quieten

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo")

CLOSE = {"rtol": 1e-4, "atol": 5e-7}
# Launches, for starting a process and importing a library takes seconds.
LAUNCHES: dict[str, dict[str, Any]] = {
    "hugging face": {
        "huggingface": hugging_face_ranks.run_huggingface,
        "accelerate": hugging_face_ranks.run_accelerate,
    },
    "others": {
        "lightning": trainer_ranks_others.run_lightning,
        "ignite": trainer_ranks_others.run_ignite,
        "fastai": trainer_ranks_others.run_fastai,
    },
}
CASES = [
    *(("huggingface", "ddp"), ("huggingface", "fsdp"), ("accelerate", "ddp")),
    *(("accelerate", "fsdp"), ("lightning", "ddp"), ("lightning", "fsdp")),
    *(("ignite", "ddp"), ("fastai", "ddp")),
]
# Each launch takes as long as a hundred other tests. What two processes do without a trainer is
# shown by optim/test_sharded_ranks.py and range_test/test_ranks.py.
pytestmark = pytest.mark.full
EACH = pytest.mark.parametrize(("library", "kind"), CASES)


def launch_of(library: str) -> str:
    return next(name for name, runs in LAUNCHES.items() if library in runs)


@pytest.fixture(scope="module")
def launched() -> dict[str, list[Seen]]:
    return {}


@pytest.fixture
def ranks(
    library: str,
    kind: str,
    launched: dict[str, list[Seen]],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Seen]:
    """What both processes saw of a library; the first who asks has all of its launch started."""
    name = launch_of(library)
    for each in LAUNCHES[name]:
        load("transformers" if each == "huggingface" else each)
    if name not in launched:
        folder = tmp_path_factory.mktemp("ranks")
        launched[name] = spawn(trainer_ranks.work, 2, folder, LAUNCHES[name])
    return [seen[library][kind] for seen in launched[name]]


def assert_close(one: Seen, other: Seen) -> None:
    for mine, theirs in zip(one["params"], other["params"], strict=True):
        np.testing.assert_allclose(mine, theirs, **CLOSE)
    for name in {"logs", "norms"} & one.keys():
        np.testing.assert_allclose(one[name], other[name], **CLOSE)


def alone(library: str, folder: Path) -> Seen:
    """Their own AdamW, scheduler and clipping in one process, over the batches of both."""
    quieten()
    if library == "huggingface":
        return hugging_face_ranks.train_trainer(folder, per_device_train_batch_size=2 * BATCH)
    train = {
        "accelerate": hugging_face_ranks.accelerated,
        "lightning": trainer_ranks_others.lit,
        "ignite": trainer_ranks_others.ignited,
        "fastai": trainer_ranks_others.learned,
    }[library]
    return train(ours=False, batch=2 * BATCH)


@EACH
def test_two_processes_take_the_steps_of_one(
    library: str, kind: str, ranks: list[Seen], tmp_path: Path
) -> None:
    wanted = alone(library, tmp_path)
    for seen in ranks:
        assert_close(seen["theirs"], wanted)
        assert_close(seen["ours"], wanted)
        assert seen["ours"].get("clock", UPDATES) == UPDATES


@pytest.mark.parametrize(
    ("library", "kind"), [case for case in CASES if case[0] != "fastai"]
)  # which resumes nothing in mid-training
def test_a_checkpoint_is_resumed(library: str, kind: str, ranks: list[Seen]) -> None:
    """Bit for bit, with the schedule where it stood."""
    for seen in ranks:
        assert bits(seen["resumed"]["params"]) == bits(seen["ours"]["params"])
        assert seen["resumed"]["clock"] == UPDATES


@EACH
def test_a_range_test_is_the_same_everywhere_and_leaves_no_trace(
    library: str, kind: str, ranks: list[Seen]
) -> None:
    one, other = ranks
    assert len(one["curves"]) == (2 if (library, kind) == ("huggingface", "ddp") else 1)
    for mine, theirs in zip(one["curves"], other["curves"], strict=True):
        assert len(mine["lrs"]) == 12 and mine["rates"] == theirs["rates"]
        assert bits([mine["losses"], mine["lrs"]]) == bits([theirs["losses"], theirs["lrs"]])
    for seen in ranks:
        assert bits(seen["tested"]["params"]) == bits(seen["ours"]["params"])


@pytest.mark.parametrize(("library", "kind"), [case for case in CASES if case[1] == "fsdp"])
def test_shards_are_clipped_with_one_collective(
    library: str, kind: str, ranks: list[Seen], launched: dict[str, list[Seen]]
) -> None:
    """One more for each update than where every process has all gradients."""
    for seen, everything in zip(ranks, launched[launch_of(library)], strict=True):
        assert seen["ours"]["kinds"] == {"DTensor"}
        extra = seen["collectives"] - everything[library]["ddp"]["collectives"]
        assert extra == UPDATES


# What starts them.

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parents[1]), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
}


def run_script(*command: str) -> str:
    """What a script prints, started as its users start it."""
    done = subprocess.run(
        [sys.executable, *command],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_torchrun_starts_it() -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    script = (run_and_exit.__file__, str(EXAMPLES / "torchrun_ddp.py"))
    check_processes(run_script(*torchrun, *script, "--steps", "6"))


@pytest.mark.full
@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray[train], some 400 MB")
def test_ray_train_starts_it() -> None:
    check_processes(run_script(str(EXAMPLES / "ray_train.py"), "--steps", "6"))
