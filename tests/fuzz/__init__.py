"""Fuzzing of everything that lrfast loads: `python -m tests.fuzz --cases 1000000`.

Each case mutates what one of our own functions wrote and loads it again. A refusal must be a
TypeError or ValueError with a message, and must leave the object as it was; what is accepted must
be usable. Crashes, hangs and memory that runs away are seen by the process beside.
"""
