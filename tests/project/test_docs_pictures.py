"""The pictures of docs/concepts: the script makes those that are committed and shown."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "images" / "concepts"
PAGES = sorted((ROOT / "docs" / "concepts").glob("*.md"))
MOST_BYTES = 60_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name and text of every picture that the script makes."""
    spec = importlib.util.spec_from_file_location("plots", ROOT / "docs" / "plots.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("pictures") / "new"
    script.main(folder)
    return {path.name: path.read_text() for path in folder.iterdir()}


def words(svg: str) -> list[str]:
    """Titles, legends and labels, without numbers: those follow the data."""
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    return sorted({text for text in texts if not re.search(r"\d", text)})


def test_the_script_makes_the_committed_pictures(made: dict[str, str]) -> None:
    committed = {path.name: path.read_text() for path in COMMITTED.iterdir()}
    assert made.keys() == committed.keys()
    for name, svg in made.items():
        assert words(svg) == words(committed[name]), name
        assert len(svg) < MOST_BYTES and len(committed[name]) < MOST_BYTES, name
        assert "dc:date" not in svg and "Matplotlib v" not in svg, name


def test_every_picture_is_shown_and_described(made: dict[str, str]) -> None:
    shown = [
        match
        for page in PAGES
        for match in re.findall(r"!\[([^\]]+)\]\(\.\./images/concepts/([^)]+)\)", page.read_text())
    ]
    assert {name for _, name in shown} == made.keys()
    assert all(len(description) > 20 for description, _ in shown)
