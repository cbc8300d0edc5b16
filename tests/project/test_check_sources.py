"""tools/check_sources.py: it finds planted formulas, and sources that nothing compiles."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import check_sources  # noqa: E402

# What stood in the drivers, and what could.
FORMULAS = [
    "changes.updates += update * update;",
    "squares += to_compute(grad[e]) * to_compute(grad[e]);",
    "lanes[lane] += value*value;",
    "sum += row->norm * row->norm;",
    "norm = std::sqrt(sum);",
    "const double weight = 1.0 - decay;",
    "rate /= 1.0 + count * decay;",
    "bias = pow(beta, count);",
]
OTHERS = [
    "const int64_t begin = chunk.index * t.chunk_size;",
    "const Element* from = static_cast<const Element*>(array) + first;",
    "if (spent * tasks >= cost * count) begins.push_back(c);",
    "place = 1 - place;",
    "sums[thread * threads] = 1.0;",
    "size = count * count_of(groups);",
    "// update * update is core's",
]


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return the function that says what is wrong with a line of a layer."""
    monkeypatch.setattr(check_sources, "CSRC", tmp_path)

    def faults_of(layer: str, line: str) -> list[str]:
        path = tmp_path / layer / "planted.cpp"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"void planted() {{\n  {line}\n}}\n")
        return [sentence for _, sentence in check_sources.faults_in(path)]

    return faults_of


@pytest.mark.parametrize("line", FORMULAS)
@pytest.mark.parametrize("layer", ["cpu", "cuda"])
def test_a_planted_formula_is_found(layer: str, line: str, faults) -> None:
    (found,) = faults(layer, line)
    assert found.startswith(f"{layer}/ must hold no formula, found ")
    assert faults("core", line) == []


@pytest.mark.parametrize("line", OTHERS)
def test_other_arithmetic_passes(line: str, faults) -> None:
    assert faults("cpu", line) == []


def test_a_source_that_is_in_no_unit_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_sources, "CSRC", tmp_path)
    folder = tmp_path / "bindings"
    folder.mkdir()
    for name in ("cuda.cpp", "engine.cpp", "no_cuda.cpp", "plan.cpp", "plan.h"):
        (folder / name).touch()
    unit = folder / "all.cpp"
    unit.write_text('#include "bindings/engine.cpp"\n// #include "bindings/plan.cpp"\n')
    ((_, sentence),) = check_sources.faults_in(unit)
    assert sentence == 'bindings/all.cpp must include "bindings/plan.cpp", or it is not compiled'


def test_a_power_in_python_is_found(tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text("LIMIT = 2**63\n\n\ndef product(beta, steps):\n    return beta**steps\n")
    assert list(check_sources.powers_in(path)) == [
        (5, "optim/ must hold no formula, found 'beta ** steps'")
    ]
