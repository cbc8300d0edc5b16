"""The demo; ``python -m lrfast.demo`` runs it without the command line's packages."""

from lrfast.tools.demo import (
    BATCH,
    EPOCHS,
    JUDGED_PER_DIGIT,
    LABELS_PER_DIGIT,
    PASSES,
    SEEDS,
    Batches,
    Digits,
    Task,
    compare,
    fine_tune,
    load_digits,
    make_model,
    make_task,
    make_tuner,
    pretrain,
    run,
    run_recipe,
    transplant,
    uniform,
)

__all__ = [
    "BATCH",
    "EPOCHS",
    "JUDGED_PER_DIGIT",
    "LABELS_PER_DIGIT",
    "PASSES",
    "SEEDS",
    "Batches",
    "Digits",
    "Task",
    "compare",
    "fine_tune",
    "load_digits",
    "make_model",
    "make_task",
    "make_tuner",
    "pretrain",
    "run",
    "run_recipe",
    "transplant",
    "uniform",
]

if __name__ == "__main__":
    from pathlib import Path

    from rich.console import Console

    run(Path("lrfast-demo"), Console())
