"""Files and pickles of former versions load, and what follows from them is what followed then.

The archives in `data` are as the former versions wrote them; `former.py` says how, and what goes on
from each file.
"""

from __future__ import annotations

import json
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from former import DATA, OUTCOMES, RECORDS, Record, difference, plain

ARCHIVES = sorted(DATA.glob("*.zip"))


@cache
def members(archive: Path) -> dict[str, bytes]:
    """All files of an archive."""
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@cache
def outcomes(archive: Path) -> dict[str, Any]:
    """What followed from each file in the version that wrote it."""
    return dict(json.loads(members(archive)[OUTCOMES]))


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.stem)
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_what_a_former_version_wrote_goes_on_as_it_did(
    record: Record, archive: Path, tmp_path: Path
) -> None:
    if record.name not in members(archive):
        pytest.skip(f"{archive.stem} had none")
    path = tmp_path / record.name
    path.write_bytes(members(archive)[record.name])
    found = plain(record.outcome(record.read(path)))
    assert difference(found, outcomes(archive)[record.name], record.tolerance) is None


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.stem)
def test_every_file_of_a_former_version_is_read(archive: Path) -> None:
    assert members(archive).keys() - {OUTCOMES} <= {record.name for record in RECORDS}
    assert members(archive).keys() - {OUTCOMES} == outcomes(archive).keys()
