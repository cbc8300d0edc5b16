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
from trainers import LIBRARIES, NEEDED, load, quieten

import lrfast

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(lrfast.__path__, "lrfast.")
    if module.name != "lrfast._C"
)
RUNNABLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


# design.md lists names, some of them yet to come.
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "design.md"], ids=lambda page: page.name
)
def test_code_blocks_run_in_order(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    if page.name == "integrations.md":
        for library in LIBRARIES:
            load(library)
        quieten()
    namespace: dict[str, object] = {"print": lambda *values: None}
    for block in RUNNABLE.findall(page.read_text()):
        exec(compile(block, page.name, "exec"), namespace)


def test_the_readme_has_examples() -> None:
    assert len(RUNNABLE.findall((ROOT / "README.md").read_text())) >= 2


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        # SVGs are made by docs/plots.py: tests/project/test_docs_pictures.py.
        if "://" not in target and not target.endswith(".svg"):
            assert (page.parent / target).exists(), target
