"""Runs the GPU tests on simulated devices: ``PYTHONPATH=tests python -m sim [pytest's arguments]``.

Environment variables: sim/plugin.py.
"""

import os
import sys

# Sets of strings have an order of their own in each process; it must not reach the streams.
SETTINGS = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
PYTEST = ["-m", "pytest", "-p", "sim.plugin", "-m", "gpu or sim", "-r", "fE"]

os.execve(sys.executable, [sys.executable, *PYTEST, *sys.argv[1:]], os.environ | SETTINGS)
