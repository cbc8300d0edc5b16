"""Timings of single parts: steps, schedules, curves and range tests, against peers."""
