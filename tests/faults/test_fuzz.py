"""A share of the fuzzing; `python -m tests.fuzz --cases 1000000` is all of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest
import torch
from fuzz import runner
from fuzz.mutations import damage, mutate
from fuzz.target import Finding, Target

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("cases", [2_000, pytest.param(20_000, marks=pytest.mark.full)])
def test_no_case_does_harm(cases: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--cases", str(cases), "--processes", "1"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^[a-z ]+?  +(\d+) +(\d+) +(\d+)", done.stdout, re.MULTILINE)
    assert len(rows) == 10 and sum(int(made) for made, _, _ in rows) >= cases - 10
    # Each target takes some of its cases and refuses others: else it would show nothing. A few
    # cases may all be refused.
    many = [(int(made), int(accepted)) for made, accepted, _ in rows if int(made) >= 80]
    assert len(many) >= 7 and all(0 < accepted < made for made, accepted in many)


class Faulty(Target):
    """Does at some cases what no loader may."""

    name: ClassVar[str] = "faulty"
    share: ClassVar[float] = 1.0
    faults: ClassVar[dict[int, str]] = {
        3: "changes",
        5: "crashes",
        7: "another error",
        11: "memory",
    }

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.count = self.state = 0

    def case(self, random: Random) -> bool:
        draws = {Random(f"9 faulty {index}").random(): what for index, what in self.faults.items()}
        what = draws.get(random.random())

        def load() -> None:
            if what == "crashes":
                os.abort()
            if what == "another error":
                raise KeyError("name")
            if what == "memory":
                torch.empty(2**40)
            if what == "changes":
                self.state += 1
                raise ValueError("after the change")

        return self.attempt(load, lambda: self.state)[0]


@pytest.mark.filterwarnings("ignore")  # a fork of a process with threads
def test_faults_are_found_and_named() -> None:
    (report,) = runner.run([Faulty], 20, 2, seed=9).values()
    assert report.cases == 20 and report.count == len(report.findings) == 4
    found = sorted(re.findall(r"faulty, case (\d+)", " ".join(report.findings)), key=int)
    assert found == ["3", "5", "7", "11"]
    text = " ".join(report.findings)
    assert "changed something" in text and "ended with status" in text and "KeyError" in text
    with pytest.raises(Finding, match="changed something"):
        runner.run_one(Faulty, 9, 3)
    assert runner.run_one(Faulty, 9, 4)


def test_mutations_leave_what_they_change_and_can_be_repeated() -> None:
    value = {"a": [1, 2.0, ("x", None)], "b": {"t": torch.ones(2)}}
    before = repr(value)
    made = [repr(mutate(Random(seed), value)) for seed in range(300)]
    assert repr(value) == before
    assert len(set(made)) > 150
    assert made == [repr(mutate(Random(seed), value)) for seed in range(300)]
    data = bytes(range(50))
    assert len({damage(Random(seed), data) for seed in range(100)}) > 80
