"""The command line: ``lrfast find``, ``demo``, ``bench`` and ``doctor``.

It needs typer and rich, which are optional dependencies; ``doctor`` also works without them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lrfast._utils.optional import importing

if TYPE_CHECKING:
    from lrfast.tools.bench import BenchResult

Result = TypeVar("Result")
_BENCHED: Final = "(model, optimizer), (model, optimizer, batch, loss_fn) or these and a scheduler"


def main() -> None:
    """Run the command line."""
    try:
        with importing("the command line needs typer and rich", "typer", "rich", extra="cli"):
            import rich  # noqa: F401
            import typer
    except ImportError as error:
        if sys.argv[1:] == ["doctor"]:
            from lrfast.tools.doctor import diagnose

            diagnosis = diagnose()
            sys.stdout.write(diagnosis.table() + "\n")
            sys.exit(int(not diagnosis.is_healthy))
        sys.exit(str(error))

    app = typer.Typer(help="Find, schedule and apply learning rates.", no_args_is_help=True)

    @app.callback(invoke_without_command=True)
    def lrfast(
        version: bool = typer.Option(False, "--version", help="Show the version and end."),
    ) -> None:
        """Find, schedule and apply learning rates."""
        if version:
            typer.echo(f"lrfast {metadata.version('lrfast')}, torch {metadata.version('torch')}")
            raise typer.Exit

    @app.command()
    def find(
        target: str = typer.Argument(
            help="script.py:make or module:make, a function that takes nothing and returns (model, "
            "optimizer, train_loader) or these and loss_fn; or a Hugging Face checkpoint, with "
            "--data.",
        ),
        data: Path = typer.Option(None, help="Texts: .csv, .json, .jsonl or .txt."),  # noqa: B008
        text: str = typer.Option("text", help="Column of the texts."),
        label: str = typer.Option("label", help="Column of the labels; without: a language model."),
        batch_size: int = typer.Option(16, help="Texts per batch."),
        start_lr: float = typer.Option(1e-7, help="First learning rate."),
        end_lr: float = typer.Option(10.0, help="Last learning rate."),
        num_iter: int = typer.Option(100, help="Updates."),
        out: Path = typer.Option(Path("lrfast-find"), help="Folder for the results."),  # noqa: B008
    ) -> None:
        """Run a range test of your training; write plot, CSV and JSON."""
        sweep = {"start_lr": start_lr, "end_lr": end_lr, "num_iter": num_iter}
        texts = {"text": text, "label": label, "batch_size": batch_size}
        _in_one_line("find", lambda: _find(target, data, texts, sweep, out))

    @app.command()
    def demo(
        out: Path = typer.Option(Path("lrfast-demo"), help="Folder for the plots."),  # noqa: B008
    ) -> None:
        """Find rates and fine-tune a small network on real handwritten digits."""
        from rich.console import Console

        from lrfast.tools.demo import run

        _in_one_line("demo", lambda: run(out, Console()))

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
        run = partial(_bench, target, optimizer, device, one_cycle, options)
        _print_bench(_in_one_line("bench", run))

    @app.command()
    def doctor() -> None:
        """Say what is built, for which GPUs, against which torch, and what is missing."""
        raise typer.Exit(_print_doctor())

    app()


def _in_one_line(command: str, run: Callable[[], Result]) -> Result:
    """Return what a command returns; what it needs and does not get is one line."""
    try:
        return run()
    except (TypeError, ValueError, RuntimeError, AssertionError, ImportError, OSError) as error:
        first = str(error).partition("\n")[0]
        sys.exit(f"lrfast {command}: {first or type(error).__name__}")


def _find(
    target: str, data: Path | None, texts: dict[str, Any], sweep: dict[str, Any], out: Path
) -> None:
    from lrfast._utils.tables import Table
    from lrfast.range_test._display import lr_text
    from lrfast.tools.find import find, find_for_checkpoint, write

    if data is None and ":" not in target:
        raise ValueError(
            f"target must be script.py:make or module:make, or a checkpoint with --data, "
            f"got {target!r}"
        )
    if data is None:
        result = find(target, **sweep)
    else:
        result = find_for_checkpoint(target, data, **texts, **sweep)
    rows = [(name, lr_text(each)) for name, each in result.suggestions.items()]
    lines = [str(result), "", result.terminal_plot(width=72), ""]
    lines += [Table(("rule", "learning rate"), rows).text(), ""]
    lines += [f"written: {path}" for path in write(result, out)]
    sys.stdout.write("\n".join(lines) + "\n")


def _bench(
    target: str, optimizer: str, device: str, one_cycle: bool, options: dict[str, float | None]
) -> BenchResult:
    from lrfast.tools.bench import bench

    if ":" not in target:
        *given, scheduler = _built_in(target, optimizer, device, one_cycle)
    else:
        from lrfast.tools.find import call_target

        made = call_target(target, (2, 4, 5), _BENCHED)
        *given, scheduler = made if len(made) == 5 else (*made, None)
    return bench(*given, scheduler=scheduler, **options)  # type: ignore[arg-type]


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
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # each build of torch has words of its own
        raise ValueError(
            f"device must be one that torch has here, got {device!r}: {error}"
        ) from error
    problem = PROBLEMS[target](device)
    made = cls(problem.model.parameters(), lr=1e-3)
    scheduler = None
    if one_cycle:
        cycles = not made.defaults.keys().isdisjoint(("momentum", "betas"))
        one_cycle_lr = torch.optim.lr_scheduler.OneCycleLR
        scheduler = one_cycle_lr(made, 1e-2, total_steps=1000, cycle_momentum=cycles)
    return problem.model, made, problem.batch, problem.loss_fn, scheduler


def _print_bench(result: BenchResult) -> None:
    from rich.console import Console

    from lrfast._utils.tables import Table
    from lrfast.tools.bench._result import MEMORY_NUMBERS

    titles, *rows = result.rows()
    update = [row[0] for row in rows].index("update")
    table = Table(titles, rows, chosen=update, right=range(1, len(titles)))
    console = Console()
    console.print(result.header(), highlight=False)
    console.print(table.rich())
    console.print(*result.summary(), sep="\n", highlight=False)
    titles, *rows = result.memory_rows()
    console.print(Table(titles, rows, right=MEMORY_NUMBERS).rich())


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
