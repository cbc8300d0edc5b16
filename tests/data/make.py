"""Writes the files that later versions must load, with what follows from each.

It ran with the lrfast of commit 3963d3e (version 0.1.0), the last one before the modules moved:

    python tests/data/make.py tests/data/3963d3e.zip

Never run it again for an archive that is there: its files are what a former version wrote. A later
version gets an archive of its own, from the records of `former.py`.
"""

from __future__ import annotations

import json
import random
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from former import OUTCOMES, RECORDS, Record, difference, plain


def seed() -> None:
    """Put all generators at their start."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@contextmanager
def stopped_clock() -> Iterator[None]:
    """Let nothing that is stored depend on how long it took."""
    clock = time.perf_counter
    time.perf_counter = lambda: 100.0
    try:
        yield
    finally:
        time.perf_counter = clock


def make(record: Record, folder: Path) -> object:
    """Write a record's file, and return the outcome, that of the file and of what was written."""
    seed()
    with stopped_clock():
        original = record.make()
    path = folder / record.name
    record.write(original, path)
    wanted = plain(record.outcome(original))
    seed()
    found = plain(record.outcome(record.read(path)))
    if text := difference(found, wanted, 0.0):
        raise RuntimeError(f"{record.name} is not read as it was written: {text}")
    return found


def main(archive: Path) -> None:
    """Make an archive, of the same values always: torch writes addresses into pickled tensors."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, zipfile.ZipFile(archive, "x") as members:
        outcomes = {record.name: make(record, Path(folder)) for record in RECORDS}
        contents = {record.name: Path(folder, record.name).read_bytes() for record in RECORDS}
        contents[OUTCOMES] = json.dumps(outcomes).encode()
        for name, content in contents.items():
            # A ZipInfo of its own has no date.
            members.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
