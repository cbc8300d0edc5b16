"""Checks the site that sphinx has built: `make docs`.

* Every public name of lrfast is in the reference: what the `__all__` of its packages list, and what
  its public modules without one define.
* Every link within the site leads to a page that is there, and to an anchor on it; every picture,
  style and script is there.
* No page is wider than its window: tables, code and pictures stand in boxes that scroll or shrink,
  and where there is a Chromium it measures every page (with LRFAST_REQUIRE_BROWSER=1, one must be
  there).
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import pkgutil
import re
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import page_widths

ROOT = Path(__file__).resolve().parent.parent
# Programs, what a range test is made of, and packages that hold modules alone.
NOT_IN_THE_REFERENCE = {"lrfast.cli", "lrfast.demo", "lrfast.integrations", "lrfast.snapshot"}
# Packages without public names of their own: what they define is public elsewhere.
INTERNAL_PACKAGES = ("lrfast.tools", "lrfast.training")
# How a loss schedule's state gets in and out of an optimizer's.
INTERNAL = {"lrfast.loss_schedules.check_saved", "lrfast.loss_schedules.load_saved"}
# In which box a wide element has to stand, by tag; the styles make that box scroll.
BOXES = {"table": "table-wrapper", "pre": "highlight"}
# What the styles have to say for it, without spaces.
STYLES = {
    "tables scroll": r"\.table-wrapper[^{}]*\{[^}]*overflow-x:auto",
    "code scrolls": r"(^|[},])pre\{[^}]*overflow(-x)?:auto",
    "pictures shrink": r"(^|[},])img\{[^}]*max-width:100%",
}
# The theme's own indices: the styles hold their columns within the page.
INDICES = {"indextable", "domainindex-table"}
VOID = frozenset(("area", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"))


class Page(HTMLParser):
    """A page's links, the anchors that links may name, and its wide elements outside of boxes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.unboxed: list[str] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)
        values = {name: value or "" for name, value in attrs}
        self._see(tag, values)
        if tag not in VOID:
            self._open.append((tag, values.get("class", "").split()))

    def handle_endtag(self, tag: str) -> None:
        opened = [name for name, _ in self._open]
        if tag in opened:
            del self._open[len(opened) - 1 - opened[::-1].index(tag) :]

    def _see(self, tag: str, values: dict[str, str]) -> None:
        """Note an element that nothing keeps within the page."""
        box = BOXES.get(tag)
        is_boxed = any(box in classes for _, classes in self._open)
        if box and not is_boxed and INDICES.isdisjoint(values.get("class", "").split()):
            self.unboxed.append(f"<{tag}> stands in no box of class {box}")
        width = re.fullmatch(r"(\d+)(px)?", values.get("width", ""))
        if tag in ("img", "table") and width and int(width[1]) > page_widths.PHONE:
            self.unboxed.append(f"<{tag}> is {width[1]} pixels wide on any window")


def public_modules() -> Iterator[str]:
    """The names of the modules that are public by name."""
    yield "lrfast"
    for found in pkgutil.walk_packages([str(ROOT / "lrfast")], "lrfast."):
        if found.name in NOT_IN_THE_REFERENCE or found.name.startswith(INTERNAL_PACKAGES):
            continue
        if "._" not in found.name:
            yield found.name


def defined_names(module: str) -> list[str]:
    """The public classes and functions of a module, read and not imported."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    kinds = (ast.ClassDef, ast.FunctionDef)
    found = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)]
    return [name for name in found if not name.startswith("_")]


def public_names() -> dict[str, object]:
    """Every public name, in each place that has it, and what it stands for."""
    names: dict[str, object] = {}
    for name in public_modules():
        if name.startswith("lrfast.integrations."):  # needs a trainer's library
            names |= {f"{name}.{each}": f"{name}.{each}" for each in defined_names(name)}
            continue
        module = importlib.import_module(name)
        listed = module.__all__ if hasattr(module, "__all__") else defined_names(name)
        names |= {f"{name}.{each}": getattr(module, each) for each in listed}
    return {name: value for name, value in names.items() if not inspect.ismodule(value)}


def documented_names(site: Path) -> set[str]:
    """The Python objects of the reference, from the inventory that other sites link by."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)
    lines = zlib.decompress(inventory[4]).decode().splitlines()
    return {line.split()[0] for line in lines if line.split()[1].startswith("py:")}


def missing_names(site: Path) -> list[str]:
    """Public names of which the reference says nothing, under none of their names."""
    names, documented = public_names(), documented_names(site)
    found = {id(value) for name, value in names.items() if name in documented}
    return sorted(
        name for name, value in names.items() if id(value) not in found and name not in INTERNAL
    )


def broken_links(site: Path) -> list[str]:
    """Links within the site that lead nowhere, as "page: link"."""
    pages = {path.resolve(): Page(path.read_text()) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else set()
            if not target.is_file() or (parts.fragment and parts.fragment not in anchors):
                broken.append(f"{path.relative_to(site.resolve())}: {link}")
    return sorted(broken)


def missing_blocks(site: Path) -> list[str]:
    """Public names whose blocks of arguments docs/conf.py has not made fields of."""
    text = "".join(path.read_text() for path in sorted(site.glob("reference/*.html")))
    found = []
    for name, value in public_names().items():
        if "\nAdvanced args:\n" in (inspect.getdoc(value) or "") and f'id="{name}"' in text:
            own = text.partition(f'id="{name}"')[2].partition('<dt class="sig ')[0]
            found += [name] * ("Advanced arguments" not in own)
    return found


def missing_styles(site: Path) -> list[str]:
    """What the styles of the site do not see to, of what keeps pages within their windows."""
    sheets = (path.read_text() for path in sorted(site.rglob("*.css")))
    styles = re.sub(r"/\*.*?\*/|\s+", "", "".join(sheets), flags=re.DOTALL)
    return [rule for rule, found in STYLES.items() if not re.search(found, styles)]


def unboxed(site: Path) -> list[str]:
    """Wide elements that can push a page out of its window, as "page: element"."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    return [f"{path.relative_to(site)}: {e}" for path, page in pages.items() for e in page.unboxed]


def too_wide(site: Path) -> list[str]:
    """What a browser finds outside of its window; nothing without a browser, if none must be."""
    browser = page_widths.find_browser()
    if browser:
        return page_widths.too_wide(site, browser)
    return [f"no browser of {', '.join(page_widths.NAMES)}"] if page_widths.is_required() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("site", type=Path)
    site = parser.parse_args().site
    sys.path.insert(0, str(ROOT))
    faults = [f"not in the reference: {name}" for name in missing_names(site)]
    faults += [f"broken link in {fault}" for fault in broken_links(site)]
    faults += [f"no blocks of arguments at {name}" for name in missing_blocks(site)]
    faults += [f"no style makes sure that {rule}" for rule in missing_styles(site)]
    faults += [f"too wide: {fault}" for fault in [*unboxed(site), *too_wide(site)]]
    for fault in faults:
        sys.stdout.write(f"{fault}\n")
    return min(len(faults), 1)


if __name__ == "__main__":
    sys.exit(main())
