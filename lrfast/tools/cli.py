"""The command line: ``lrfast demo``, ``bench`` and ``doctor``.

It needs typer and rich, which are optional dependencies; ``doctor`` also works without them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrfast.tools.bench import BenchResult


def main() -> None:
    """Run the command line."""
    try:
        import rich  # noqa: F401
        import typer
    except ImportError:
        if sys.argv[1:] == ["doctor"]:
            from lrfast.tools.doctor import diagnose

            diagnosis = diagnose()
            sys.stdout.write(diagnosis.table() + "\n")
            sys.exit(int(not diagnosis.is_healthy))
        sys.exit(
            "the command line needs typer and rich: install them with `pip install 'lrfast[cli]'`"
        )

    app = typer.Typer(help="Find, schedule and apply learning rates.", no_args_is_help=True)

    @app.callback()
    def lrfast() -> None:
        """Find, schedule and apply learning rates."""

    @app.command()
    def demo(
        out: Path = typer.Option(Path("lrfast-demo"), help="Folder for the plots."),  # noqa: B008
    ) -> None:
        """Find rates and fine-tune a small network on real handwritten digits."""
        from rich.console import Console

        from lrfast.tools.demo import run

        run(out, Console())

    @app.command()
    def bench(
        target: str = typer.Argument(
            "transformer",
            help="mlp, cnn or transformer; or module:function of yours that takes nothing and "
            "returns (model, optimizer), then (batch, loss_fn), then a scheduler, if you like.",
        ),
        optimizer: str = typer.Option("AdamW", help="Class of torch.optim, for built-in models."),
        device: str = typer.Option("", help="For built-in models; a GPU if there is one."),
        one_cycle: bool = typer.Option(False, help="With OneCycleLR, for built-in models."),
        clip: float = typer.Option(0.0, help="Norm to clip gradients to; 0: none."),
        ema: float = typer.Option(0.0, help="Decay of an average of the weights; 0: none."),
        seconds: float = typer.Option(3.0, help="To spend on timing."),
    ) -> None:
        """Time an optimizer and a model against lrfast's fused step."""
        options = {"max_grad_norm": clip or None, "ema_decay": ema or None, "seconds": seconds}
        _print_bench(_bench(target, optimizer, device, one_cycle, options))

    @app.command()
    def doctor() -> None:
        """Say what is built, for which GPUs, against which torch, and what is missing."""
        raise typer.Exit(_print_doctor())

    app()


def _bench(
    target: str, optimizer: str, device: str, one_cycle: bool, options: dict[str, float | None]
) -> BenchResult:
    from lrfast.tools.bench import bench

    try:
        make = _call(target) if ":" in target else _built_in(target, optimizer, device, one_cycle)
        *given, scheduler = make
        return bench(*given, scheduler=scheduler, **options)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, ImportError) as error:
        sys.exit(f"lrfast bench: {error}")


def _built_in(target: str, optimizer: str, device: str, one_cycle: bool) -> tuple[Any, ...]:
    """Return a built-in model with an optimizer of torch, a batch, a loss and a scheduler."""
    import torch

    from lrfast.tools.bench._models import PROBLEMS

    if target not in PROBLEMS:
        known = ", ".join(PROBLEMS)
        raise ValueError(f"target must be {known} or module:function, got {target!r}")
    cls: Any = getattr(torch.optim, optimizer, None)
    if cls is None:
        raise ValueError(f"optimizer must be a class of torch.optim, got {optimizer!r}")
    problem = PROBLEMS[target](device or ("cuda" if torch.cuda.is_available() else "cpu"))
    made = cls(problem.model.parameters(), lr=1e-3)
    scheduler = None
    if one_cycle:
        cycles = not made.defaults.keys().isdisjoint(("momentum", "betas"))
        one_cycle_lr = torch.optim.lr_scheduler.OneCycleLR
        scheduler = one_cycle_lr(made, 1e-2, total_steps=1000, cycle_momentum=cycles)
    return problem.model, made, problem.batch, problem.loss_fn, scheduler


def _call(target: str) -> tuple[Any, ...]:
    """Return the result of the user's function, found as python -m would find its module."""
    import importlib

    module, _, name = target.partition(":")
    sys.path.insert(0, "")
    found = getattr(importlib.import_module(module), name, None)
    if not callable(found):
        raise ValueError(f"target must name a function, got {target!r}")
    made = found()
    if not isinstance(made, tuple) or len(made) not in (2, 4, 5):
        got = f"{len(made)} entries" if isinstance(made, tuple) else type(made).__name__
        raise TypeError(
            f"{target} must return (model, optimizer), (model, optimizer, batch, loss_fn) or these "
            f"and a scheduler, got {got}"
        )
    return made if len(made) == 5 else (*made, None)


def _print_bench(result: BenchResult) -> None:
    from rich.console import Console

    from lrfast._utils.tables import Table

    titles, *rows = result.rows()
    update = [row[0] for row in rows].index("update")
    table = Table(titles, rows, chosen=update, right=range(1, len(titles)))
    console = Console()
    console.print(table.rich(result.header()))
    console.print(*result.summary(), sep="\n", highlight=False)


def _print_doctor() -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lrfast.tools.doctor import diagnose

    diagnosis = diagnose()
    colours = {"ok": "green", "note": "yellow", "broken": "bold red"}
    table = Table("", "", "found", box=None)
    for finding in diagnosis.findings:
        colour, text = colours[finding.status], escape(finding.found)
        if finding.advice:
            text += f"\n[{colour}]->[/] {escape(finding.advice)}"
        table.add_row(f"[{colour}]{finding.status}[/]", finding.name, text)
    Console().print(table)
    return int(not diagnosis.is_healthy)
