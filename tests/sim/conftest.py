"""Without the simulator there is nothing to test here."""

import sys

if "sim.plugin" not in sys.modules:
    collect_ignore_glob = ["test_*.py"]
