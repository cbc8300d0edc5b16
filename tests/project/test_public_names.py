"""No public name goes, and none takes other arguments, without the record of them saying so.

`data/public_names.json` was written at commit 3963d3e, before the modules moved. A name that is new
is added by `python tests/helpers/interfaces.py`; one that goes, or changes, is edited by hand.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from interfaces import NAMES, interface, listed, public_modules

RECORDED = json.loads(NAMES.read_text())
ATTRIBUTES = RECORDED.pop("dir(lrfast)")
LISTED = {module: set(recorded.pop("__all__")) for module, recorded in RECORDED.items()}


@pytest.mark.parametrize("module", list(RECORDED))
def test_all_names_are_there_and_take_what_they_took(module: str) -> None:
    recorded = RECORDED[module]
    found = interface(module, list(recorded))
    assert {name: found.get(name) for name in recorded} == recorded
    assert LISTED[module] <= set(listed(module))


@pytest.mark.parametrize("module", list(public_modules()))
def test_what_a_module_offers_is_on_record(module: str) -> None:
    assert interface(module).keys() <= RECORDED.get(module, {}).keys()


def test_import_lrfast_gives_what_it_gave() -> None:
    command = "import lrfast; print(*dir(lrfast))"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True)
    names = [name for name in result.stdout.decode().split() if not name.startswith("_")]
    assert names == ATTRIBUTES
