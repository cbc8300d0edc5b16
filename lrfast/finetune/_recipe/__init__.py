"""The recipe: a plan of two stages, its learning rates, and a report of what was done."""

from lrfast.finetune._recipe._plan import PlannedStage
from lrfast.finetune._recipe._recipe import Recipe
from lrfast.finetune._recipe._report import AppliedStage

__all__ = ["AppliedStage", "PlannedStage", "Recipe"]
