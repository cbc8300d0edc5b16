"""The seeded faults fit the sources. `make faults` says which of them the tests miss."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from cpp_objects import ROOT
from project.faults.catalog import FAULTS
from project.faults.fault import Fault


def test_there_are_enough_of_every_kind() -> None:
    names = Counter(fault.name for fault in FAULTS)
    assert set(names.values()) == {1}
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)
    places = Counter("/".join(fault.place.split("/")[:2]) for fault in FAULTS)
    assert len(FAULTS) >= 60
    for place in ("csrc/core", "csrc/cpu", "csrc/bindings"):
        assert places[place] >= 5, places
    assert sum(count for place, count in places.items() if place.startswith("lrfast")) >= 30


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_stands_once_in_the_sources(fault: Fault) -> None:
    file = fault.file_in(ROOT)
    assert fault.text != fault.instead
    if file.suffix == ".py":
        faulty = file.read_text().replace(fault.text, fault.instead)
        compile(faulty, str(file), "exec")  # what does not even compile shows nothing


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_tests_that_are_to_catch_it_are_there(fault: Fault) -> None:
    arguments = fault.arguments(ROOT)
    assert any(name.partition("::")[0].endswith(".py") for name in arguments)
    for program in re.findall(r"test_program\[(\w+)-address\]", fault.tests):
        assert (ROOT / "tests" / "cpp" / f"{program}.cpp").exists()


def test_a_text_must_stand_there_once(tmp_path: Path) -> None:
    (tmp_path / "lrfast").mkdir()
    (tmp_path / "lrfast" / "one.py").write_text("a = 1\nb = 1\n")
    (tmp_path / "lrfast" / "two.py").write_text("c = 1\n")
    once = Fault("once", "lrfast", "c = 1", "c = 2", "")
    assert once.file_in(tmp_path) == tmp_path / "lrfast" / "two.py"
    for text, times in (("= 1", 3), ("d", 0)):
        with pytest.raises(ValueError, match=f"got {times} times"):
            Fault("not once", "lrfast", text, "", "").file_in(tmp_path)
