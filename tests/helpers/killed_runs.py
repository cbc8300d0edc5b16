"""Runs that are killed again and again, each begun anew from the newest file that it has left.

A process that has imported torch forks them, for an import takes longer than a run. A run kills
itself with SIGKILL at a place that a seed draws: behind a step, amid the bytes of a file, before
the file is safe on the disk, before and after it takes the old one's place. Others are killed from
without, at any moment.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from resuming import PLATEAU, Case, fit_first, fit_second, left, make_tuner
from tiny import bits, cross_entropy, make_model
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lrfast
from lrfast import FineTuner, RangeTest, schedules
from lrfast._utils.atomic_write import replacing
from lrfast.finetune import Callback

KILLS = 5  # of a run at most; then it may end
LONGEST_S = 60.0

TUNED = Case(
    "killed",
    "adamw",
    {"ema_decay": 0.7, "max_grad_norm": 0.3, "keep_best": "accuracy", "weight_decay": 0.1},
    loss_schedule=(PLATEAU, {"every": 2}),
)


class Killer:
    """Kills its own process at the n-th moment that it is told of."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def __call__(self, moment: str) -> None:
        self.seen += 1
        if self.seen == self.at:
            with open("moments", "a") as file:
                file.write(f"{moment}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def watch_files(self) -> None:
        """Be told of all that happens to a file on its way."""
        save, replace = torch.save, os.replace

        def saving(data: Any, file: Any) -> None:
            save(data, Halved(file, self))

        def syncing(handle: int) -> None:
            self("before it is safe")  # waiting for the disk would only take time here

        def replacing(*paths: Any) -> None:
            self("before it takes the place")
            replace(*paths)
            self("after it has taken the place")

        torch.save, os.fsync, os.replace = saving, syncing, replacing  # type: ignore[assignment]


class Halved:
    """A file whose bytes come in halves, with a moment in between."""

    def __init__(self, file: Any, killer: Killer) -> None:
        self.file, self.killer = file, killer

    def write(self, data: Any) -> int:
        data = bytes(data)
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        self.killer("amid the bytes")
        self.file.write(data[half:])
        return len(data)

    def flush(self) -> None:
        self.file.flush()


class SaveEvery(Callback):
    """Saves at every second step, into one file."""

    def __init__(self, killer: Killer) -> None:
        self.killer = killer

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        self.killer("a step")
        if step % 2 == 0:
            tuner.save("newest.pt")


def tuned(killer: Killer) -> Any:
    """Two stages of a fine-tuner with everything."""
    tuner = make_tuner(TUNED)
    tuner.callbacks.append(SaveEvery(killer))
    if Path("newest.pt").exists():
        tuner.load("newest.pt")
    done = len(tuner.finished_stages())
    if tuner._interrupted is not None:
        tuner.resume()
        done += 1
    if done == 0:
        fit_first(tuner, TUNED)
        tuner.save("newest.pt")
        done += 1
    if done == 1:
        fit_second(tuner, TUNED)
    tuner.history.to_csv("history.csv")
    return left(tuner), Path("history.csv").read_text()


def plain(killer: Killer) -> Any:
    """A loop of one's own, that saves model, optimizer and place in the data."""
    torch.manual_seed(4)
    model = make_model()
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(12, 4, generator=torch.Generator().manual_seed(6))
    data = TensorDataset(rows, rows[:, :3].argmax(1))
    loader = DataLoader(data, batch_size=2, shuffle=True, generator=generator)
    schedule = schedules.one_cycle(15, momentum=(0.9, 0.6), pct_start=0.4)
    optimizer = lrfast.AdamW(
        lrfast.discriminative(model, [0.01, 0.02, 0.05]),
        betas=(0.8, 0.95),
        weight_decay=0.1,
        ema_decay=0.7,
        schedule=schedule,
    )
    plateau = PLATEAU(optimizer)
    epoch, losses = 0, []
    if Path("newest.pt").exists():
        saved = torch.load("newest.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["order"])
        torch.set_rng_state(saved["random"])
        epoch, losses = saved["epoch"], saved["losses"]
    while epoch < 3:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            plateau.observe(loss)
            losses.append(loss.item())
            killer("a step")
        epoch += 1
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "order": generator.get_state(),
            "random": torch.get_rng_state(),
            "epoch": epoch,
            "losses": losses,
        }
        with replacing("newest.pt", "wb") as file:
            torch.save(state, file)
    return bits([model.state_dict(), optimizer.state_dict(), losses])


def files(killer: Killer) -> Any:
    """Writes range tests and histories for ever, each over the last one."""
    lrs = torch.logspace(-5, 0, 40, dtype=torch.float64).numpy()
    suggestion = lrfast.suggest.Suggestion(0.1, "auto", "so", 1.0)
    sweep = lrfast.range_test._sweep.Sweep("exp", 40, ((1e-5, 1.0),), 0)
    seconds = 0.0
    while True:
        seconds += 1.0
        result = RangeTest(lrs, lrs, lrs, lrs, sweep, {"auto": suggestion}, "completed", seconds)
        result.to_json("result.json")
        result.to_csv("result.csv")


RUNS: dict[str, Callable[[Killer], Any]] = {"tuned": tuned, "plain": plain, "files": files}


def fork(run: str, at: int, after_s: float | None = None) -> int:
    """Begin a run here that kills itself at a moment, and kill it after some time; its status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            killer = Killer(at)
            killer.watch_files()
            result = RUNS[run](killer)
            Path("result.pickle").write_bytes(pickle.dumps(result))
            Path("moments_seen").write_text(str(killer.seen))
            status = 0
        finally:
            os._exit(status)
    limit = time.monotonic() + (LONGEST_S if after_s is None else after_s)
    while time.monotonic() < limit:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def torn(run: str, seed: int, folder: Path, moments: int, seconds: float) -> dict[str, Any]:
    """Kill a run up to KILLS times, and say what it came to in the end."""
    draw = random.Random(seed)
    folder.mkdir()
    os.chdir(folder)
    kills = left_over = 0
    for kill in range(KILLS):
        # Not the first two: a run may end before it is killed from without.
        is_outer = kill > 1 and draw.random() < 0.6
        after_s = draw.uniform(0, seconds / 2) if is_outer else None
        status = fork(run, 0 if is_outer else draw.randrange(1, moments // 2), after_s)
        left_over += len(list(folder.glob(".*.tmp")))
        if status == 0:
            break
        assert status == signal.SIGKILL, f"status {status}"
        kills += 1
    else:
        assert fork(run, 0) == 0
    inner = Path("moments").read_text().splitlines() if Path("moments").exists() else []
    return {"result": _result(), "kills": kills, "moments": inner, "torn files": left_over}


def _result() -> Any:
    return pickle.loads(Path("result.pickle").read_bytes())


def main(folder: Path, seeds: int) -> None:
    """Run everything, and write what was found."""
    torch.set_num_threads(1)
    for run in ("tuned", "plain"):  # what is imported and compiled once, no fork needs to again
        warm = folder / f"warm {run}"
        warm.mkdir()
        os.chdir(warm)
        RUNS[run](Killer(0))
    found: dict[str, Any] = {}
    for run in ("tuned", "plain"):
        whole = folder / run
        whole.mkdir()
        os.chdir(whole)
        began = time.monotonic()
        assert fork(run, 0) == 0
        seconds = time.monotonic() - began
        found[run] = _result()
        moments = int(Path("moments_seen").read_text())
        for seed in range(seeds):
            there = folder / f"{run}{seed}"
            found[f"{run} {seed}"] = torn(run, seed, there, moments, seconds)
    there = folder / "files"
    there.mkdir()
    os.chdir(there)
    draw = random.Random(7)
    for _ in range(5):
        assert fork("files", draw.randrange(20, 60)) == signal.SIGKILL
        found.setdefault("files", []).append(read_files(there))
    (folder / "found.pickle").write_bytes(pickle.dumps(found))


def read_files(there: Path) -> tuple[int, int]:
    """Read what was left, whole or not at all: lines of the CSV and fields of the JSON file."""
    rows = len((there / "result.csv").read_text().splitlines())
    fields = json.loads((there / "result.json").read_text())
    RangeTest.from_json(there / "result.json")
    return rows, len(fields)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
