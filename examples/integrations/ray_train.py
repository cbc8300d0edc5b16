"""What torchrun_ddp.py does, with Ray Train starting the processes.

Its workers are started on the CPU.

    pip install "ray[train]"
    python examples/integrations/ray_train.py --workers 2
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def work(config: dict[str, Any]) -> None:
    """What a worker does; Ray has made the process group."""
    import torch.distributed as dist
    from torchrun_ddp import compare

    text = compare(argparse.Namespace(**config, device="cpu"))
    Path(config["folder"], str(dist.get_rank())).write_text(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args(arguments)
    # The workers find the modules that this process finds.
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    ray.init(num_cpus=chosen.workers, include_dashboard=False, runtime_env={"env_vars": paths})
    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            work,
            train_loop_config={"folder": folder, **vars(chosen)},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=chosen.workers),
            run_config=RunConfig(storage_path=folder, name="lrfast"),
        ).fit()
        for rank in range(chosen.workers):
            sys.stdout.write(Path(folder, str(rank)).read_text())
    ray.shutdown()


if __name__ == "__main__":
    main()
