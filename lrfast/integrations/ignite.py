"""lrfast under PyTorch-Ignite; needs ``ignite``. Its optimizers work in any engine as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import Optimizer

from lrfast import range_test
from lrfast._utils.arguments import checked
from lrfast.integrations._shared import LRFinderBase

__all__ = ["LRFindHandler"]


class LRFindHandler(LRFinderBase):
    """Runs a range test when an engine starts, and trains on at the suggested learning rate.

    The engine's own process function makes the steps; its handlers do not run meanwhile. Weights,
    states, order of data and random numbers are restored. Without a suggestion the learning rates
    stay. ``results`` holds all range tests.

    Args:
        model: Module that the engine trains.
        optimizer: Its optimizer, of lrfast or torch.
        output_transform: Maps the process function's output to the loss, a tensor on the device;
            default: the output itself. ``create_supervised_trainer`` returns ``loss.item()``, a
            synchronisation per step, unless its own ``output_transform`` is
            ``lambda x, y, y_pred, loss: loss``.
        rule: Name of the suggestion method; None, the default: that of :attr:`RangeTest.rule`.
        **options: Arguments of :func:`lrfast.lr_find` that go with a ``step_fn``. A GradScaler that
            the process function uses belongs in ``others``.

    Example:
        >>> import torch, lrfast
        >>> from ignite.engine import create_supervised_trainer
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = lrfast.SGD(model.parameters(), lr=0.1)
        >>> trainer = create_supervised_trainer(
        ...     model, optimizer, torch.nn.functional.mse_loss,
        ...     output_transform=lambda x, y, y_pred, loss: loss,
        ... )
        >>> finder = LRFindHandler(model, optimizer, progress=False).attach(trainer)
        >>> state = trainer.run([(torch.ones(4, 2), torch.full((4, 1), 5.0))], max_epochs=1)
        >>> len(finder.results)
        1
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        output_transform: Callable[[Any], Tensor] = lambda output: output,
        rule: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(rule)
        self._model, self._optimizer = model, optimizer
        self._loss_of, self._options = output_transform, options

    def attach(self, engine: Engine) -> LRFindHandler:
        """Return itself, after registering for the engine's start."""
        engine.add_event_handler(Events.STARTED, self)
        return self

    def __call__(self, engine: Engine) -> None:
        """Run a range test on the engine's data, and apply it."""

        def step(batch: Any) -> Tensor:
            return self._loss_of(engine._process_function(engine, batch))

        result = range_test.lr_find(
            self._model, self._optimizer, engine.state.dataloader, step_fn=step, **self._options
        )
        self._take(result, self._optimizer)
