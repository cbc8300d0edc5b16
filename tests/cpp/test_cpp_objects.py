"""The cache of object files: what makes a new object, what does not, and what is never used."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import pytest
from cpp_objects import (
    ROOT,
    ObjectCache,
    included_by,
    is_up_to_date,
    optimization,
)

CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-I", "csrc"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source that includes one header by its folder and, through it, one by csrc/."""
    for name, text in {
        "csrc/core/deep.h": "#pragma once\n#include <cmath>\nconstexpr int kDeep = 1;\n",
        "tests/near.h": '#pragma once\n  #  include "core/deep.h"\nconstexpr int kNear = kDeep;\n',
        "tests/alone.h": "#pragma once\n",
        "tests/one.cpp": '#include "near.h"\nint one() { return kNear; }\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def cache_of(tree: Path) -> ObjectCache:
    return ObjectCache(tree / "build", CXX, tree)


def flags_of(tree: Path) -> list[str]:
    return ["-std=c++20", "-I", str(tree / "csrc")]


def compiled(tree: Path, flags: list[str] | None = None) -> int:
    """How many objects a new cache on the same folder had to compile."""
    cache = cache_of(tree)
    cache.object(tree / "tests" / "one.cpp", flags or flags_of(tree))
    return len(cache.compiled)


def test_nothing_is_compiled_twice(tree: Path) -> None:
    assert compiled(tree) == 1
    for file in tree.rglob("*.h"):  # neither a date nor another header counts
        os.utime(file)
    (tree / "tests" / "alone.h").write_text("#pragma once\n#error\n")
    assert compiled(tree) == 0


@pytest.mark.parametrize("name", ["csrc/core/deep.h", "tests/near.h", "tests/one.cpp"])
def test_a_changed_source_or_header_is_another_object(tree: Path, name: str) -> None:
    assert compiled(tree) == 1
    before = (tree / name).read_text()
    (tree / name).write_text(before.replace("kDeep", "kDeeper").replace("one", "two") + "\n")
    key = cache_of(tree).key(tree / "tests" / "one.cpp", [])
    (tree / name).write_text(before)
    assert key != cache_of(tree).key(tree / "tests" / "one.cpp", [])
    (tree / name).write_text(before + "// longer\n")
    assert compiled(tree) == 1
    (tree / name).write_text(before)
    assert compiled(tree) == 0  # the first one is still there


def test_flags_and_the_compiler_are_part_of_the_key(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiled(tree) == 1
    assert compiled(tree, [*flags_of(tree), "-O1"]) == 1
    monkeypatch.setattr("cpp_objects.version_of", lambda compiler: "gcc version 99")
    assert compiled(tree) == 1


@pytest.mark.parametrize("damage", [b"", b"\x7fELF nonsense"])
def test_a_damaged_file_is_not_used(tree: Path, damage: bytes) -> None:
    path = cache_of(tree).object(tree / "tests" / "one.cpp", flags_of(tree))
    whole = path.read_bytes()
    path.write_bytes(damage)
    again = cache_of(tree).object(tree / "tests" / "one.cpp", flags_of(tree))
    assert again.read_bytes() == whole
    assert list(path.parent.glob("*.o")) == [again]


def test_a_source_that_does_not_compile_leaves_nothing(tree: Path) -> None:
    (tree / "tests" / "one.cpp").write_text("#error meant\n")
    with pytest.raises(AssertionError, match="#error meant"):
        compiled(tree)
    assert {path.suffix for path in (tree / "build").iterdir()} == {".lock"}


def _compile_in_process(tree: Path, results: multiprocessing.Queue[int]) -> None:
    results.put(compiled(tree))


def test_processes_wait_for_each_other(tree: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_compile_in_process, args=(tree, results)) for _ in "abcd"]
    for process in processes:
        process.start()
    counts = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert sorted(counts) == [0, 0, 0, 1]


def test_old_files_are_pruned_and_used_ones_are_not(tree: Path) -> None:
    cache = cache_of(tree)
    kept = cache.object(tree / "tests" / "one.cpp", flags_of(tree))
    old = kept.with_name("two-key-digest.o")
    recent = kept.with_name("three-key-digest.o")
    unfinished = kept.with_name("left.tmp")
    running = kept.with_name("now.tmp")
    for path in [old, recent, unfinished, running]:
        path.write_bytes(b"")
    month = time.time() - 30 * 86400
    for path in [old, unfinished, kept]:
        os.utime(path, (month, month))
    cache_of(tree).object(tree / "tests" / "one.cpp", flags_of(tree))
    cache.prune()
    assert kept.exists() and recent.exists() and running.exists()
    assert not old.exists() and not unfinished.exists()
    hour = time.time() - 3600
    os.utime(recent, (hour, hour))
    cache.prune(most=1)
    assert kept.exists() and not recent.exists()


def test_headers_are_those_that_the_compiler_finds() -> None:
    """Conditions aside: what the compiler skips may only make an object too new."""
    for source in [ROOT / "csrc/cpu/step.cpp", *(ROOT / "tests/cpp").glob("test_c*.cpp")]:
        listed = subprocess.run(
            [CXX, *FLAGS, "-MM", str(source)], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        names = listed.replace("\\\n", " ").split()[2:]
        assert {(ROOT / name).resolve() for name in names} <= included_by(source)


def test_only_objects_that_are_up_to_date_come_from_the_extension(tmp_path: Path) -> None:
    ninja = pytest.importorskip("ninja")
    program = str(Path(ninja.BIN_DIR) / "ninja")
    (tmp_path / "in.cpp").write_text("one")
    target = tmp_path / "out.o"
    (tmp_path / "build.ninja").write_text(
        f"rule compile\n  command = cp $in $out\nbuild {target}: compile {tmp_path}/in.cpp\n"
    )
    assert not is_up_to_date(program, target, tmp_path)
    subprocess.run([program, str(target)], cwd=tmp_path, check=True, capture_output=True)
    assert is_up_to_date(program, target, tmp_path)
    later = time.time() + 10
    (tmp_path / "in.cpp").write_text("two")
    os.utime(tmp_path / "in.cpp", (later, later))
    assert not is_up_to_date(program, target, tmp_path)
    assert not is_up_to_date(program, tmp_path / "other.o", tmp_path)
    assert optimization(["-O3", "-g", "-O0"]) == "-O0" and optimization(["-g"]) is None
