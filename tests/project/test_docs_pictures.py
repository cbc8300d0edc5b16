"""The pictures of the pages: SVGs are made by docs/plots.py, and no others are shown."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from lrfast.schedules import _registry

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST_BYTES = {True: 60_000, False: 100_000}  # of the concepts, and of the benchmarks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Place below docs/images and text of every picture that the script makes."""
    spec = importlib.util.spec_from_file_location("plots", ROOT / "docs" / "plots.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("pictures") / "new"
    script.main(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def shown() -> dict[str, str]:
    """Place below docs/images and description of every picture on a page."""
    found = {}
    for page in PAGES:
        for description, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text()):
            path = (page.parent / target).resolve()
            found[path.relative_to(IMAGES).as_posix()] = description
    return found


def test_every_picture_that_is_made_is_shown_and_every_other_is_committed(
    made: dict[str, str],
) -> None:
    places = shown()
    assert {place for place in places if place.endswith(".svg")} == made.keys()
    others = {path.relative_to(IMAGES).as_posix() for path in IMAGES.rglob("*.png")}
    assert {place for place in places if not place.endswith(".svg")} == others
    assert all(len(description) > 20 for description in places.values())


def test_no_picture_is_committed_twice() -> None:
    files = [path.read_bytes() for path in IMAGES.rglob("*.png")]
    assert len(files) == len(set(files)) > 5


def test_pictures_are_small_have_words_and_no_date(made: dict[str, str]) -> None:
    for place, svg in made.items():
        assert len(svg) < MOST_BYTES[place.startswith("concepts/")], place
        assert re.search(r"<text[^>]*>[^<]*[a-z]{3}", svg), place
        assert "dc:date" not in svg and "Matplotlib v" not in svg, place


def test_every_schedule_has_its_picture_on_the_page_of_schedules(made: dict[str, str]) -> None:
    page = (ROOT / "docs" / "schedules.md").read_text()
    functions = [each.__name__ for each in _registry._MAKERS] + ["from_torch"]
    for name in functions:
        place = f"schedules/{name}.svg"
        assert place in made, f"docs/plots.py has no call of {name}"
        assert f">{name}(" in made[place].replace("\n", "") and f"](images/{place})" in page
    lines = {place: re.findall(r'<path d="([^"]+)"', made[place]) for place in made}
    pictures = [tuple(found) for place, found in lines.items() if place.startswith("schedules/")]
    assert len(set(pictures)) == len(pictures) >= len(functions)  # no two are alike


def test_made_pictures_are_ignored_by_git_and_made_before_the_site() -> None:
    assert "/docs/images/**/*.svg" in (ROOT / ".gitignore").read_text().splitlines()
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^docs:.* pictures( |$)", makefile, re.MULTILINE)
    assert re.search(r"^pictures:.*\n\t\$\(BIN\)/python docs/plots.py$", makefile, re.MULTILINE)


def test_a_picture_beside_code_is_what_that_code_saves() -> None:
    """`tools/page_outputs.py` makes it; those of examples are made by examples/."""
    for page in PAGES:
        for target in re.findall(r"!\[[^\]]*\]\([^)]*?([^/)]+\.png)\)", page.read_text()):
            is_saved = f'plot("{target}")' in page.read_text()
            assert is_saved or "examples" in page.name, (page.name, target)
