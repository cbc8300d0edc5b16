"""Former homes of public classes, under which pickles of lrfast 0.1 look for them."""

from __future__ import annotations

import sys

# Optimizers, results and callbacks that were pickled whole name the module of their class.
_MOVED = {
    "_mirror": "_utils.async_copy",
    "_options": "optim._options",
    "_scheduled": "optim._scheduling",
    "bench._result": "tools.bench._result",
    "finetune._best": "finetune._best_model",
    "finetune._recipe_plan": "finetune._recipe._plan",
    "finetune._recipe_rates": "finetune._recipe._report",
    "finetune._recipe_table": "finetune._recipe._report",
    "finetune._run": "finetune._stage_state",
    "groups._group": "groups._layer_group",
    "loss_schedules._greedy": "optim._loss_schedules",
    "loss_schedules._plateau": "optim._loss_schedules",
    "range_test._applied": "range_test._result",
    "range_test._peaks": "range_test._peak_rates",
    "range_test._race_result": "range_test._result",
    "range_test._ranks": "training._ranks",
    "range_test._retest_log": "range_test._retest",
    "schedules._tables": "schedules._segments",
}
_RENAMED = {
    "_utils.async_copy.Mirror": "AsyncHostCopy",
    "finetune._recipe._plan.Numbers": "RecipeConfig",
    "finetune._recipe._report.Choice": "RateChoice",
    "finetune._stage_state.Moment": "ResumePoint",
}


def register_modules() -> None:
    """Let former names stand for the modules and classes of now."""
    for former, present in _MOVED.items():
        sys.modules.setdefault(f"lrfast.{former}", sys.modules[f"lrfast.{present}"])
    for former, present in _RENAMED.items():
        module, _, name = former.rpartition(".")
        holder = sys.modules[f"lrfast.{module}"]
        setattr(holder, name, getattr(holder, present))
