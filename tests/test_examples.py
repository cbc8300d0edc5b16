"""The examples do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_flat_keeps_what_a_network_knows_and_auto_does_not() -> None:
    outcome = runpy.run_path(str(EXAMPLES / "flat_rate.py"), run_name="flat_rate")["run"]()
    assert outcome.after["flat"] <= outcome.before < outcome.after["auto"]
    assert outcome.rates["flat"] < outcome.rates["auto"]
