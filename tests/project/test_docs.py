"""Every example in README, docs and docstrings runs as it stands."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from page_tool import IS_PINNED_TORCH, may_show, page_outputs
from trainers import LIBRARIES, NEEDED, load, quieten

import lrfast

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(lrfast.__path__, "lrfast.")
    if module.name != "lrfast._C"
)


@pytest.mark.skipif(not IS_PINNED_TORCH, reason="the pictures are the pinned torch's")
def test_pictures_of_other_runs_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    committed, made = ROOT / "docs" / "images" / "quickstart.png", tmp_path / "quickstart.png"
    for seed, is_same in ((0, True), (7, False)):
        page = page_outputs.Page(ROOT / "docs" / "index.md")
        assert "manual_seed(0)" in page.text
        page.text = page.text.replace("manual_seed(0)", f"manual_seed({seed})")
        list(page.outputs())
        assert may_show(imread(made), imread(committed), are_of_one_run=True) == is_same
        assert may_show(imread(made), imread(committed), are_of_one_run=False)
    assert not may_show(imread(made)[1:], imread(committed), are_of_one_run=False)


# design.md lists names, some of them yet to come.
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "design.md"], ids=lambda page: page.name
)
def test_code_blocks_run_in_order_and_print_what_the_page_shows(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    needed = {"integrations.md": LIBRARIES, "lora.md": ("transformers", "peft")}
    for library in needed.get(page.name, ()):
        load(library)
        quieten()
    read = page_outputs.Page(page)
    are_of_one_run = True
    for printed, shown, _ in read.outputs():
        if shown is not None:
            assert page_outputs.agree(printed, shown), f"{printed}\nThe page shows:\n{shown}"
            are_of_one_run &= page_outputs.are_of_one_run(printed, shown)
    for target in re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", read.text):
        if (saved := tmp_path / Path(target).name).exists():
            pictures = (imread(saved), imread(page.parent / target))
            assert may_show(*pictures, are_of_one_run), f"{target} shows another run"
    for both in re.findall(r"^```diff\n(.*?)^```", read.text, re.MULTILINE | re.DOTALL):
        for side in "-+":
            lines = [line[1:] for line in both.splitlines() if line[:1] in (" ", side)]
            exec(compile("\n".join(lines), page.name, "exec"), read.namespace)


# Where newcomers are: what they run shows what it prints, and nothing is shown that no code prints.
@pytest.mark.parametrize(
    "page",
    [
        *(ROOT / name for name in ("README.md", "docs/index.md", "docs/quickstart.md")),
        *(ROOT / "docs" / f"{name}.md" for name in ("recipe", "schedules")),
        *sorted(ROOT.glob("docs/guides/*.md")),
    ],
    ids=lambda page: page.name,
)
def test_every_output_stands_behind_its_code(page: Path) -> None:
    text = page.read_text()
    behind = set()
    for block in page_outputs.CODE.finditer(text):
        output = page_outputs.OUTPUT.match(text, block.end())
        assert ("print(" in block["code"]) == bool(output), block["code"]
        behind.add(block.end())
    shown = {output.start() for output in page_outputs.OUTPUT.finditer(text)}
    assert shown <= behind, "an output that no code in front of it prints"


def test_the_readme_has_examples_with_outputs() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(page_outputs.CODE.findall(text)) >= 3
    assert len(page_outputs.OUTPUT.findall(text)) == 2


def test_what_differs_from_a_page_is_seen_but_for_numbers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint('loss', 2.5e-3, 7)\n```\n\n```text\nrate  1 2\n```\n")
    read = page_outputs.Page(page)
    ((printed, shown, _),) = read.outputs()
    alike = page_outputs.without_numbers
    assert (printed, shown) == ("loss 0.0025 7\n", "rate  1 2\n")
    assert alike(printed) == "loss 0 0" != alike(shown)
    assert "```text\nloss 0.0025 7\n```" in read.written()


HEADING = "step  seconds  loss\n"
TIMED = HEADING + "   1      0.1   0.5"


@pytest.mark.parametrize(
    ("printed", "shown", "agrees"),
    [
        ("lr 4.1e-03, group 0", "lr 5.0e-03, group 0", True),
        ("lr 4.1e-03", "lr 4.1e-02", False),
        ("40 batches", "21 batches", True),
        ("40 batches", "19 batches", False),
        ("loss -0.5", "loss 0.5", False),
        ("group 0", "group 1", False),
        ("in 0.1 s", "in 12.5 s", True),
        ("in 0.1 steps", "in 12.5 steps", False),
        (
            "9 points from 1.0 to 6.9, diverged in 4 s",
            "9 points from 1.0 to 2.3, diverged in 1 s",
            True,
        ),
        ("9 points from 1.0 to 6.9, diverged", "9 points from 3.0 to 6.9, diverged", False),
        ("9 points from 1.0 to 6.9, completed", "9 points from 1.0 to 2.3, completed", False),
        ("rates 1,000 2", "rates 1,000  2\n", True),
        (TIMED, HEADING + "   1      9.1   0.6", True),
        (TIMED, HEADING + "   1      0.1   1.6", False),
        (TIMED, HEADING + "   3      0.1   0.5", False),
        ("seconds  0.1  0.2\nloss  1  2", "seconds  7  9\nloss  1  2", True),
        ("seconds  0.1  0.2\nloss  1  2", "seconds  0.1  0.2\nloss  9  9", False),
        (TIMED + "\nloss is 0.1 now", TIMED + "\nloss is 2.1 now", False),
        ("rates 1 2", "rates 1", False),
        ("lr 1e-3", "rate 1e-3", False),
    ],
)
def test_outputs_agree_up_to_what_machines_differ_in(
    printed: str, shown: str, agrees: bool
) -> None:
    assert page_outputs.agree(printed, shown) == agrees


@pytest.mark.parametrize(
    ("printed", "shown", "are"),
    [
        ("lr 4.1e-03 in 0.1 s", "lr 4.1e-03 in 7 s", True),
        ("lr 4.1e-03 in 0.1 s", "lr 4.2e-03 in 0.1 s", False),
        ("lr 4.1e-03", "rate 4.1e-03", False),
        ("to 6.9, diverged", "to 2.3, diverged", False),
    ],
)
def test_the_very_numbers_are_of_one_run(printed: str, shown: str, are: bool) -> None:
    assert page_outputs.are_of_one_run(printed, shown) == are


class Finder(doctest.DocTestFinder):
    """Finds the examples of classes that call the package of their module their home, too."""

    def _from_module(self, module: Any, object: Any) -> bool:
        if not inspect.isclass(object) or object.__module__ == module.__name__:
            return bool(super()._from_module(module, object))  # type: ignore[misc]
        functions = filter(inspect.isfunction, vars(object).values())
        return any(function.__globals__ is vars(module) for function in functions)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_give_what_they_say(name: str) -> None:
    for library in NEEDED.get(name.removeprefix("lrfast.integrations."), ()):
        load(library)
    runner = doctest.DocTestRunner()
    for examples in Finder().find(importlib.import_module(name), name):
        runner.run(examples)
    assert runner.failures == 0


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("benchmarks", 5),
        ("suggestions", 20),
        ("why_not_just", 24),
        ("performance", 5),
        ("claims", 12),
        ("recipe", 2),
    ],
)
def test_pages_of_figures_begin_with_the_result_and_end_with_where_it_comes_from(
    name: str, rows: int
) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text()
    first, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    tables = [line for line in first.splitlines() if line.startswith("|")]
    assert len(tables) == 2 + rows
    if name in ("benchmarks", "suggestions"):
        assert first.index("![") < first.index("|")
    titles = [section.partition("\n")[0] for section in sections]
    assert titles[-1] == "Where the figures come from"
    if name not in ("recipe", "why_not_just"):
        assert titles[-2].startswith("How ") and titles[-2].endswith(" measured")
    provenance = r"commit [0-9a-f]{10}|python -m benchmarks"
    assert re.search(provenance, sections[-1])
    assert not re.search(provenance, "".join([first, *sections[:-1]]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        # SVGs are made by docs/plots.py: tests/project/test_docs_pictures.py.
        if "://" not in target and not target.endswith(".svg"):
            assert (page.parent / target).exists(), target
