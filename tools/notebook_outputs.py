"""Runs notebooks and writes their outputs: ``notebook_outputs.py NAME.ipynb ...``.

What is written is what a reader sees at the end: progress bars have gone, and there are no times of
execution and no names of a machine. ``--out FOLDER`` leaves the notebooks as they are and writes
the results there. Needs requirements/notebooks.txt.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run(path: Path) -> Any:
    """Return a notebook with the outputs that its cells have now."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, resources=place, record_timing=False).execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    return notebook


def tidy(outputs: list[Any]) -> list[Any]:
    """Return the outputs of a cell, with each stream in one piece and as a terminal leaves it."""
    kept: list[Any] = []
    for output in outputs:
        is_stream = output.output_type == "stream"
        if is_stream and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            lines = [line.rpartition("\r")[2].rstrip() for line in output.text.split("\n")]
            output.text = "\n".join(lines)
    return [output for output in kept if output.output_type != "stream" or output.text]


def main() -> None:
    """Write the outputs of the notebooks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the results")
    given = parser.parse_args()
    for path in given.notebooks:
        nbformat.write(run(path), given.out / path.name if given.out else path)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
