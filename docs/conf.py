"""Settings of the site: `make docs` builds it, without the network, and fails on any warning."""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docutils import nodes  # noqa: E402
from sphinx import addnodes  # noqa: E402
from sphinx.util.nodes import make_refnode  # noqa: E402

import lrfast  # noqa: E402

project = "lrfast"
copyright = "The lrfast authors, Apache 2.0"
version = release = lrfast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_static"]
nitpicky = True

# Headings are targets, as on the repository's pages: `page.md#a-heading`.
myst_heading_anchors = 3

# Signatures say names and defaults; types, from the annotations, stand with the arguments.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 72
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Reference"]
# Trainers are large, and none is needed to read the docstrings.
autodoc_mock_imports = [
    *("accelerate", "fastai", "ignite", "lightning", "pandas", "pytorch_lightning"),
    *("timm", "torchmetrics", "transformers"),
]

default_role = "py:obj"
nitpick_ignore_regex = [
    # Single backticks: a link where there is such a name, code otherwise.
    ("py:obj", ".*"),
    # Types of others: their inventories are on the network, which the build does without.
    (
        "py:.*",
        r"(torch|numpy|np|npt|pd|pandas|matplotlib|collections|typing|typing_extensions|pathlib"
        r"|types|datetime|mappingproxy|accelerate|fastai|ignite|lightning|transformers|Trainer)(\..*)?",
    ),
    # What a public class is made of and nobody makes by hand.
    (
        "py:class",
        r"lrfast\.(\w+\.)+(Constants|DataSize|OneCycleOptions|RandomStates|RateChoice|RecipeConfig|ResumePoint|StageOptions)",
    ),
]
# Sections of docstrings that go on with "Args", and what the page calls them; "Args" come first.
BLOCKS = {"Args": "Needed", "Common args": "Common", "Advanced args": "Advanced"}
LONGEST_WORD = 24  # characters of code that the styles keep on one line, in a table
# Private types in signatures, and where what they can do is documented.
SHOWN_AS = {
    "lrfast.optim._scheduling.SchedulingMixin": "lrfast.optim.FusedOptimizer",
    "lrfast.optim._options.StepOptions": "lrfast.optim.Options",
    "lrfast.range_test._plot.DrawnTest": "lrfast.RangeTest",
    "lrfast.finetune._callbacks.Tuner": "lrfast.FineTuner",
}

# Pages that stand at the root of the repository, where people look for them.
AT_THE_ROOT = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}

html_theme = "furo"
html_title = "lrfast"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "tango"
pygments_dark_style = "monokai"


def _read(app: Any, page: str, source: list[str]) -> None:
    """Take pages from the root, and leave words of links to what the site has not."""
    folder = Path(app.srcdir, page).parent
    start = ROOT if page in AT_THE_ROOT else folder
    if page in AT_THE_ROOT:
        app.env.note_dependency(str(ROOT / AT_THE_ROOT[page]))
        source[0] = (ROOT / AT_THE_ROOT[page]).read_text()

    def link(match: re.Match[str]) -> str:
        words, target = match.groups()
        path = os.path.relpath(start / target, folder)
        outside = Path(app.srcdir) not in (folder / path).resolve().parents
        if outside and (path.endswith(".md") or (folder / path).is_dir()):
            return words
        return f"[{words}]({path})" if (folder / path).exists() else match[0]

    source[0] = re.sub(r"\[([^]]*)\]\(((?!\w+:|#)[^)]+)\)", link, source[0])


def _evaluate_annotations(app: Any, function: Any, bound: bool) -> None:
    """Make types of a function's annotations, with the names that are there for type checkers."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    name = getattr(function, "__module__", "")
    if not inspect.isfunction(function) or not name.startswith("lrfast."):
        return
    for block in ast.parse(inspect.getsource(sys.modules[name])).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(block.body, []), "<annotations>", "exec"), function.__globals__)
    function.__annotations__ = typing.get_type_hints(function)


def _join_blocks(
    app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Make one section of all blocks of arguments, so that types are added to each argument."""
    found: dict[str, str] = {}
    kept: list[str] = []
    block = ""
    for line in lines:
        title = line.removesuffix(":")
        if title in BLOCKS:
            block = title
            if title != "Args":
                del kept[-1]  # the empty line before it
                continue
        elif line and not line.startswith(" "):
            block = ""
        elif block and (argument := re.match(r" {4}(\w+):", line)):
            found[argument[1]] = block
        kept.append(line)
    if set(found.values()) - {"Args"}:
        lines[:] = kept
        app.env.temp_data.setdefault("lrfast_blocks", {})[name] = found


def _split_blocks(app: Any, doctree: nodes.document) -> None:
    """Give each block of arguments a field of its own again."""
    for name, blocks in app.env.temp_data.get("lrfast_blocks", {}).items():
        (content,) = (
            signature.parent[-1]
            for signature in doctree.findall(addnodes.desc_signature)
            if name in signature["ids"]
        )
        for field in list(content.findall(nodes.field)):
            if field[0].astext() != "Parameters" or field.parent.parent is not content:
                continue
            items = list(field[1][0])
            for block, title in BLOCKS.items():
                own = [i for i in items if blocks[i.next_node(nodes.strong).astext()] == block]
                body = nodes.field_body("", nodes.bullet_list("", *own))
                field.parent.insert(
                    field.parent.index(field),
                    nodes.field("", nodes.field_name("", f"{title} arguments"), body),
                )
            field.parent.remove(field)


def _find_by_end(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Resolve a name without its module, as docstrings write it, where one object alone has it."""
    if node.get("refdomain") != "py" or node["reftype"] == "obj":
        return None
    target = SHOWN_AS.get(node["reftarget"], node["reftarget"])
    objects = env.get_domain("py").objects
    ends = [target, target.rpartition(".")[2]] if target.startswith("lrfast.") else [target]
    for end in ends:
        found = {
            (entry.docname, entry.node_id)
            for name, entry in objects.items()
            if f".{name}".endswith(f".{end}")
        }
        if len(found) == 1:
            return make_refnode(app.builder, node["refdoc"], *found.pop(), content)
    return None


def _link_names(app: Any, doctree: nodes.document, page: str) -> None:
    """Make links of the public names that pages write as code, where they are nothing else yet."""
    objects = app.env.get_domain("py").objects
    for literal in list(doctree.findall(nodes.literal)):
        if len(literal.astext()) <= LONGEST_WORD:
            literal["classes"].append("word")  # an option does not break at its hyphens
        entry = objects.get(literal.astext().removesuffix("()"))
        if entry is not None and not isinstance(literal.parent, nodes.reference | nodes.title):
            place = (entry.docname, entry.node_id)
            literal.replace_self(make_refnode(app.builder, page, *place, literal.deepcopy()))


def setup(app: Any) -> None:
    """Connect what makes links of names and annotations."""
    app.connect("source-read", _read)
    # Before autodoc itself looks at the signature.
    app.connect("autodoc-before-process-signature", _evaluate_annotations, priority=100)
    # Before napoleon looks at the docstring.
    app.connect("autodoc-process-docstring", _join_blocks, priority=100)
    app.connect("doctree-read", _split_blocks)
    app.connect("missing-reference", _find_by_end)
    app.connect("doctree-resolved", _link_names)
