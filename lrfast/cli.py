"""The command line: ``lrfast demo``. typer and rich are optional dependencies, needed only here."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Run the command line."""
    try:
        import rich  # noqa: F401
        import typer
    except ImportError:
        sys.exit(
            "the command line needs typer and rich: install them with `pip install lrfast[cli]`"
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

        from lrfast.demo import run

        run(out, Console())

    app()
