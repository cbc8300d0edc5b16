"""The notebooks run from start to end and show what is committed, up to what machines differ in."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from page_tool import load_tool, may_show, page_outputs

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PICTURE = re.compile(r'(?<=data:image/png;base64,)[^"]*')
FLAT = re.compile(r"<tr><td[^>]*>flat</td>.*?</tr>")
MOST_BYTES = 60_000  # of one picture

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def parts(notebook: Any) -> list[tuple[str, str]]:
    """Return what the cells show, in order: the name of a stream or a kind of data, and text."""
    shown: list[tuple[str, str]] = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            data = {output.get("name"): output.get("text")} | output.get("data", {})
            shown += [(kind, "".join(text)) for kind, text in data.items() if text is not None]
    return shown


def pictures(notebook: Any) -> list[bytes]:
    shown = parts(notebook)
    texts = [text for kind, text in shown if kind == "image/png"]
    for kind, text in shown:
        texts += PICTURE.findall(text) if kind == "text/html" else []
    return [base64.b64decode(text) for text in texts]


def sources(notebook: Any) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"]]


def comparable(text: str) -> str:
    """Return a text without pictures, times of epochs and the row of the rule `flat`.

    That rule takes a quarter of the points as the start, and where a range test diverges, and so
    how many points it has, differs between processors.
    """
    return re.sub(r"\b\d+:\d\d\b", "", FLAT.sub("", PICTURE.sub("", text)))


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["fine_tuning", "quickstart"]


@each_notebook
def test_what_is_committed_is_clean(path: Path) -> None:
    notebook = read(path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    kinds = [kind for kind, _ in parts(notebook)]
    assert "stderr" not in kinds and "error" not in kinds
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text and "\\r" not in text and "/tmp" not in text
    found = pictures(notebook)
    assert len(found) == 2 and all(len(picture) < MOST_BYTES for picture in found)


@each_notebook
def test_a_notebook_shows_what_it_did(path: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ipykernel") is None:
        is_needed = os.environ.get("LRFAST_REQUIRE_INTEGRATIONS") == "1"
        assert not is_needed or sys.version_info < (3, 11)
        pytest.skip("needs ipykernel: requirements/notebooks.txt has it")
    command = [sys.executable, str(ROOT / "tools" / "notebook_outputs.py"), str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--out", str(tmp_path)], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    committed, made = read(path), read(tmp_path / path.name)
    assert sources(made) == sources(committed)
    are_of_one_run = True
    for (kind, text), (shown_kind, shown_text) in zip(parts(made), parts(committed), strict=True):
        assert kind == shown_kind
        if kind != "image/png":
            printed, shown = comparable(text), comparable(shown_text)
            assert page_outputs.agree(printed, shown), printed
            are_of_one_run &= page_outputs.are_of_one_run(printed, shown)
    for one, other in zip(pictures(made), pictures(committed), strict=True):
        made_picture, shown_picture = imread(io.BytesIO(one)), imread(io.BytesIO(other))
        assert may_show(made_picture, shown_picture, are_of_one_run), "shows another run"


def test_all_rules_but_flat_are_compared() -> None:
    tables = [text for _, text in parts(read(NOTEBOOKS[-1])) if "<tr>" in text]
    assert [len(re.findall("<tr>", text)) for text in tables] == [10]
    assert [len(re.findall("<tr>", comparable(text))) for text in tables] == [9]
    assert ">flat<" not in comparable(tables[0]) and ">steep<" in comparable(tables[0])


def test_bars_are_gone_and_rows_stay() -> None:
    pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    tool = load_tool("notebook_outputs")
    texts = ["\rbar  10%|#  | 1/10", "\r           ", "\rrow 1\n\rbar 20%|## |", "\r          \r"]
    streams = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in texts]
    assert [output.text for output in tool.tidy(streams)] == ["row 1\n"]
    assert tool.tidy(streams[:0]) == []
