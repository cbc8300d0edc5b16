"""Figures of range tests, schedules and fine-tuning runs; they need matplotlib."""

from lrfast._utils.figures import limits
from lrfast.finetune._history import plot_history
from lrfast.optim._plot import plot_schedules
from lrfast.range_test._plot import plot_comparison, plot_range_test
from lrfast.schedules._schedule import plot_schedule

__all__ = [
    "limits",
    "plot_comparison",
    "plot_history",
    "plot_range_test",
    "plot_schedule",
    "plot_schedules",
]
