"""Schedules that wait for the loss: their factor multiplies whatever schedule the optimizer has.

State and factor stay on the device: neither an observation nor a change of the rates waits for it.
The factor rests while a range test plans the rates.
"""

from lrfast.optim._loss_schedules._base import LossSchedule
from lrfast.optim._loss_schedules._greedy import Greedy
from lrfast.optim._loss_schedules._load import check_saved, load_saved
from lrfast.optim._loss_schedules._plateau import Plateau

__all__ = ["Greedy", "LossSchedule", "Plateau", "check_saved", "load_saved"]
