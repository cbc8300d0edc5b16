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
    1: "a capture on a device that is not the current one",
    2: "an empty curve counts as none in a capture",
    3: "what a recording leaves on the host and in the pool's gradients",
    4: "the CPU reads what is on its way from the GPU",
    5: "a state of one stream is dropped on another",
    12: "a replay after a new capture without a refresh",
    13: "the copies of a failed capture are dropped on another stream",
    14: "a test's curve has one group too few",
    15: "last_rates stays on the GPU after steps that were undone before the first",
}

_capture = "tests/training/test_capture.py::test_"
_changes = "tests/training/test_capture_changes.py::test_"
_programs = "tests/sim/test_findings.py::test_"
FAILING = {
    f"{_programs}01_a_capture_on_the_second_device[0": Known(1),
    f"{_programs}01_a_capture_on_the_second_device[1-after": Known(1),
    f"{_programs}02_": Known(2),
    f"{_programs}04_": Known(4, enough=40),
    f"{_programs}05_the_first_step_may_be_on_another_stream[Adagrad": Known(5, enough=20),
    f"{_programs}12_a_replay_after_a_new_capture_steps_on_its_own_gradients[captured": Known(12),
    f"{_programs}13_": Known(13, enough=20),
    f"{_capture}skipped_steps_add_no_point[cuda": Known(2),
    f"{_capture}capturing_leaves_no_trace[cuda": Known(3),
    f"{_capture}a_fresh_optimizer_stays_fresh[cuda": Known(3),
    f"{_capture}a_module_outside_the_optimizer[cuda": Known(3),
    f"{_capture}a_step_that_fails_leaves_no_trace[cuda": Known(15),
    f"{_changes}or_it_captures_again[cuda-gradients set to None": Known(12),
    f"{_changes}a_capture_that_failed_is_not_replayed[cuda": Known(13, enough=20),
    "tests/optim/test_gpu.py::test_memory_is_flat_over_a_thousand_steps": Known(14),
}

# The simulator could, this machine's memory could not: torch says that 8 GB are free.
LEFT_OUT = {"tests/optim/test_gpu.py::test_more_elements_than_32_bits_count[": "needs 21 GB"}
