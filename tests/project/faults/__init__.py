"""Seeded faults, and the command that says which of them the default run of the tests misses.

python -m tests.project.faults applies them one by one to a copy of the tree; see __main__.
"""
