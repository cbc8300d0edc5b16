"""Optuna, which searches a task's learning rate by the losses of its grid.

    pip install optuna==5.0.0

Its default sampler, TPE, draws log-uniform rates ten times before it models what it has seen. It is
told the mean validation loss over the grid's seeds, interpolated: the one that it is judged by.
"""

from __future__ import annotations

from typing import Any, Final

from benchmarks.research.suggestions.baselines import RUNS, SEARCHED
from benchmarks.research.suggestions.regret import Landscape
from benchmarks.research.suggestions.store import Store

STUDIES: Final = range(20)


def fill_optuna(landscape: Landscape, store: Store) -> None:
    """Runs the studies that the store lacks."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    low, high = (10.0**decade for decade in SEARCHED)

    def objective(trial: Any) -> float:
        return landscape.loss(trial.suggest_float("lr", low, high, log=True))

    present = {study["seed"] for study in store.records(landscape.task, "optuna")}
    for seed in STUDIES:
        if seed not in present:
            study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
            study.optimize(objective, n_trials=max(RUNS))
            rates = [float(f"{trial.params['lr']:.6g}") for trial in study.trials]
            store.add(landscape.task, {"kind": "optuna", "seed": seed, "rates": rates})
