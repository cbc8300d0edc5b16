"""What is known of the GPU tests in the simulator."""

from __future__ import annotations

# Beginning of a test's name: number of the finding by which it fails.
FAILING: dict[str, int] = {}

# Beginning of a test's name: why it is not run.
LEFT_OUT: dict[str, str] = {}
