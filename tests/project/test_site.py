"""The site's sources: what `make docs` cannot see, and that its own check sees what it should."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import zlib
from pathlib import Path

import pytest

from lrfast import cli

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import check_site  # noqa: E402
import page_widths  # noqa: E402

REFERENCE = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.rst"))


def make_site(folder: Path, names: list[str], page: str) -> Path:
    lines = "".join(f"{name} py:function 1 page.html#$ -\n" for name in names)
    head = b"# Sphinx inventory version 2\n# Project: x\n# Version: 1\n# zlib\n"
    (folder / "objects.inv").write_bytes(head + zlib.compress(lines.encode()))
    (folder / "page.html").write_text(page)
    return folder


def test_a_name_that_is_not_documented_is_found(tmp_path: Path) -> None:
    names = sorted(check_site.public_names())
    assert check_site.missing_names(make_site(tmp_path, names, "")) == []
    names.remove("lrfast.schedules.rex")
    names.remove("lrfast.integrations.timm.register")
    assert check_site.missing_names(make_site(tmp_path, names, "")) == [
        *("lrfast.integrations.timm.register", "lrfast.schedules.rex")
    ]


def test_a_name_is_documented_under_any_of_its_names(tmp_path: Path) -> None:
    names = set(check_site.public_names()) - {"lrfast.AdamW"}
    assert "lrfast.optim.AdamW" in names
    assert check_site.missing_names(make_site(tmp_path, sorted(names), "")) == []


@pytest.mark.parametrize(
    ("page", "broken"),
    [
        ('<a href="#here"></a><p id="here"></p>', []),
        ('<a href="page.html"></a><a href="https://x.org/y#z"></a>', []),
        ('<a href="page.html#there"></a>', ["page.html: page.html#there"]),
        ('<a href="other.html"></a>', ["page.html: other.html"]),
        ('<img src="images/plot.svg">', ["page.html: images/plot.svg"]),
    ],
)
def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, page: str, broken: list[str]) -> None:
    assert check_site.broken_links(make_site(tmp_path, [], page)) == broken


@pytest.mark.parametrize("is_one_list", [False, True])
def test_arguments_that_are_one_long_list_are_found(tmp_path: Path, is_one_list: bool) -> None:
    blocks = dict.fromkeys(("lr_find", "FineTuner"), "Common arguments, Advanced arguments")
    if is_one_list:
        blocks["lr_find"] = "Parameters"
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "page.html").write_text(
        "".join(f'<dt class="sig " id="lrfast.{name}"></dt>{text}' for name, text in blocks.items())
    )
    assert check_site.missing_blocks(tmp_path) == ["lrfast.lr_find"] * is_one_list


TABLE = "<article><div class='table-wrapper x'><table><tr><td>{}</td></tr></table></div></article>"


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        (TABLE.format("x"), None),
        ("<div class=highlight><pre>x</pre></div>", None),
        ("<table class='x genindextable indextable'></table>", None),
        ("<img src=p.png width=300>", None),
        ("<table><tr><td></table>", "<table> stands in no box of class table-wrapper"),
        ("<div class=table-wrapper></div><table></table>", "<table> stands in no box"),
        (TABLE.format("x") + "<p><pre>x</pre>", "<pre> stands in no box of class highlight"),
        ("<img src=p.png width=800px>", "<img> is 800 pixels wide on any window"),
    ],
)
def test_what_no_box_keeps_within_the_page_is_found(
    tmp_path: Path, page: str, fault: str | None
) -> None:
    found = check_site.unboxed(make_site(tmp_path, [], page))
    assert len(found) == (fault is not None)
    assert fault is None or found[0].startswith(f"page.html: {fault}")


def test_styles_that_let_a_box_overflow_are_found(tmp_path: Path) -> None:
    site = make_site(tmp_path, [], "")
    assert check_site.missing_styles(site) == list(check_site.STYLES)
    rules = ["[role=main] .table-wrapper.container { overflow-x: auto }", "pre { overflow: auto }"]
    (site / "site.css").write_text("\n".join([*rules, "/* all */ img { max-width: 100% }"]))
    assert check_site.missing_styles(site) == []
    (site / "site.css").write_text("\n".join([*rules, ".sidebar img { max-width: 100% }"]))
    assert check_site.missing_styles(site) == ["pictures shrink"]


WIDE = "<body style='margin: 0'><article><{} style='{}'>{}</div></article>"


@pytest.mark.parametrize(
    ("page", "faults"),
    [
        (WIDE.format("div", "overflow-x: auto", "<pre style='width: 3000px'>x</pre>"), []),
        (
            WIDE.format("div", "width: 500px", "x"),
            ["at 390 pixels: is 500 pixels wide", 'at 390 pixels: <div> "x" ends at 500'],
        ),
        # What is cut off makes no page wider.
        (
            "<style>article { overflow-x: auto }</style>" + WIDE.format("div", "width: 9in", "x"),
            ['at 390 pixels: <div> "x" ends at 864'],
        ),
    ],
)
def test_a_browser_finds_what_leaves_its_window(
    tmp_path: Path, page: str, faults: list[str]
) -> None:
    browser = page_widths.find_browser()
    if browser is None:
        if page_widths.is_required():
            pytest.fail("LRFAST_REQUIRE_BROWSER=1, but there is no Chromium", pytrace=False)
        pytest.skip("there is no Chromium")
    site = make_site(tmp_path, [], f"<!DOCTYPE html>{page}")
    assert page_widths.too_wide(site, browser) == [f"page.html {fault}" for fault in faults]


def test_a_browser_that_has_to_be_there_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / page_widths.NAMES[0]
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(page_widths.REQUIRED, raising=False)
    assert check_site.too_wide(make_site(tmp_path, [], "")) == []
    monkeypatch.setenv(page_widths.REQUIRED, "1")
    assert len(check_site.too_wide(tmp_path)) == 1


# Without sphinx: the reference names each public name, or documents the module that defines it.
def test_the_reference_names_every_public_name() -> None:
    whole = re.findall(r"automodule:: (\S+)\n   :members:", REFERENCE)
    named = set(re.findall(r"auto\w+:: (\S+)", REFERENCE))
    public = check_site.public_names()
    named |= {name for name in public if name.rpartition(".")[0] in whole}
    documented = {id(public[name]) for name in named & public.keys()}
    missing = [name for name, value in public.items() if id(value) not in documented]
    assert sorted(missing) == sorted(check_site.INTERNAL)


def test_the_page_of_the_command_line_has_every_option() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    commands = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(cli.main)))
        if isinstance(node, ast.FunctionDef) and ast.unparse(node).startswith("@app.command()")
    ]
    assert len(commands) >= 3
    for command in commands:
        _, _, section = page.partition(f"\n## lrfast {command.name}\n")
        section = section.partition("\n## ")[0]
        assert section, command.name
        for argument, default in zip(command.args.args, command.args.defaults, strict=True):
            if "typer.Option" in ast.unparse(default):
                assert f"`--{argument.arg.replace('_', '-')}`" in section, argument.arg


def test_every_pin_stands_in_one_file_only() -> None:
    pins: dict[str, str] = {}
    for name in ("dev", "integrations", "docs", "notebooks"):
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
            if line and not line.startswith("#"):
                package = line.partition("==")[0]
                assert package not in pins, f"{package} in {name}.txt and {pins[package]}"
                pins[package] = f"{name}.txt"
