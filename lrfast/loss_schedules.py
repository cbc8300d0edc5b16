"""Schedules that follow the loss: Plateau and Greedy."""

from lrfast.optim._loss_schedules import Greedy, LossSchedule, Plateau, check_saved, load_saved

__all__ = ["Greedy", "LossSchedule", "Plateau", "check_saved", "load_saved"]
