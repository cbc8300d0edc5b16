"""What is known of the GPU tests in the simulator: names begin with what stands here."""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """A test that fails by a finding that is not mended yet."""

    finding: int
    enough: int = 1  # runs of which one fails; more than 1 where it depends on the order


# What keeps state over steps, so that the order matters most: over many seeds.
STATEFUL = (
    "tests/training/test_capture",
    "tests/optim/test_around_the_update.py",
    "tests/optim/test_ema_and_telemetry.py",
    "tests/optim/test_state_dicts.py",
    "tests/optim/test_plateau.py",
    "tests/optim/test_loss_schedule_states.py",
    "tests/finetune/",
    "tests/sim/test_findings.py",
)

FINDINGS = {
    2: "the test's own: an infinite loss is recorded, and stops the steps",
    15: "last_rates stays on the GPU after steps that were undone before the first",
}

_capture = "tests/training/test_capture.py::test_"
FAILING = {
    "tests/sim/test_findings.py::test_02_a_captured_curve_keeps_only": Known(2),
    f"{_capture}a_step_that_fails_leaves_no_trace[cuda": Known(15),
}

# The simulator could, this machine's memory could not: torch says that 8 GB are free.
LEFT_OUT = {"tests/optim/test_gpu.py::test_more_elements_than_32_bits_count[": "needs 21 GB"}
