"""The pictures of the pages that lrfast and the result files make: ``docs/plots.py [folder]``.

All are SVG, and none is committed: ``make docs`` makes them. Seeds are fixed, and nothing in a file
depends on when or where it was written. Lines differ in style and marker as well as in colour.
"""

from __future__ import annotations

import io
import math
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import lrfast
from lrfast import schedules
from lrfast.plot import plot_range_test, plot_schedules
from lrfast.tools.bench._contenders import bytes_moved

FOLDER = Path(__file__).parent / "images"
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "x", "P", "*")


def canvas(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def draw(axes: Axes, x: Any, y: Any, index: int, label: str, points: int = 12) -> None:
    """Draw the index-th line, with a marker every so many points."""
    every = max(len(np.asarray(x)) // points, 1)
    axes.plot(
        x,
        y,
        LINES[index % 4],
        marker=MARKERS[index % 8],
        markersize=4,
        markevery=(index * every // 4, every),
        color=f"C{index}",
        label=label,
    )


def make_task() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Return a small network, and a hundred batches of three classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model.append(nn.Linear(64, 3))
    inputs = torch.randn(3200, 20)
    targets = (inputs @ torch.randn(20, 3)).argmax(1)
    return model, list(zip(inputs.split(32), targets.split(32), strict=True))


def sweep(rule: Any = lrfast.AdamW, **options: Any) -> lrfast.RangeTest:
    """Run a range test on the task."""
    model, batches = make_task()
    optimizer = rule(model.parameters(), lr=1e-3)
    return lrfast.lr_find(
        model, optimizer, batches, nn.functional.cross_entropy, progress=False, **options
    )


def range_test() -> Figure:
    """What a range test shows, and what every rule makes of it."""
    return plot_range_test(sweep(start_lr=1e-6, end_lr=1.0), rules="all")


def declined() -> Figure:
    """Three curves that say nothing, and what the rule says of them."""
    tests = {
        "range too low": sweep(end_lr=1e-5),
        "ends too early": sweep(start_lr=1e-5, end_lr=1e-3),
        "begins too late": sweep(lrfast.SGD, start_lr=3.0),
    }
    figure, panels = canvas(3, 1, 8.0, 7.0)
    for axes, (title, result) in zip(panels, tests.items(), strict=True):
        result.plot(skip_start=0, skip_end=0, ax=axes)
        axes.set_title(f"{title}\n{result.suggestion.reason}", fontsize="small")
    return figure


def recorded(losses: Sequence[float], lrs: Sequence[float]) -> lrfast.LossCurve:
    """Return a curve of these losses."""
    curve = lrfast.LossCurve(len(losses), rates=np.asarray(lrs))
    for loss in losses:
        curve.record(torch.tensor(loss, dtype=torch.float64))
    return curve


def made_up_curve() -> tuple[lrfast.LossCurve, Any, Any]:
    """Return a curve with a known shape under noise, its rates, and the shape."""
    lrs = np.geomspace(1e-6, 1.0, 120)
    shape = 0.4 + 1.6 / (1 + (lrs / 3e-3) ** 1.2) + 30 * lrs**2
    noise = np.random.default_rng(0).normal(0.0, 0.12, len(lrs))
    losses = shape + noise
    losses[40] += 1.2
    return recorded(losses.tolist(), lrs.tolist()), lrs, shape


def smoothing() -> Figure:
    """What each smoother makes of one noisy curve."""
    curve, lrs, shape = made_up_curve()
    figure, (axes, start) = canvas(2, 1, 8.0, 6.5)
    axes.plot(lrs, curve.losses, "0.8", linewidth=1, label="losses")
    axes.plot(lrs, shape, "k", linewidth=1, label="without noise")
    draw(axes, lrs, curve.smoothed("ema", beta=0.9), 0, "ema, beta 0.9")
    for index, (method, window) in enumerate({"sma": 9, "median": 9, "savgol": 21}.items(), 1):
        draw(axes, lrs, curve.smoothed(method, window=window), index, f"{method}, window {window}")
    axes.set(ylim=(0.0, 3.5), xscale="log", xlabel="learning rate", ylabel="loss")
    axes.legend(fontsize="x-small", ncols=2)
    beta, steps = 0.98, np.arange(1, 121)
    constant = recorded([1.0] * 120, lrs.tolist()).smoothed("ema", beta=beta)
    draw(start, steps, constant, 0, "corrected")
    draw(start, steps, 1 - beta**steps, 1, "not corrected: begins at 0")
    draw(start, steps, (1 - beta**steps) / (1 - beta ** (steps + 1)), 2, "corrected off by one")
    start.set_title("EMA of a loss that is always 1, beta 0.98", fontsize="small")
    start.set(xlabel="losses seen", ylabel="EMA")
    start.legend(fontsize="x-small")
    return figure


def derivative() -> Figure:
    """One curve's slope against three axes, and with three windows."""
    curve, lrs, shape = made_up_curve()
    smooth = recorded(shape.tolist(), lrs.tolist())
    figure, (axes, noisy) = canvas(2, 1, 8.0, 6.5)
    labels = {"log_lr": "ln(rate)", "lr": "rate", "step": "step"}
    for index, (wrt, label) in enumerate(labels.items()):
        slope = smooth.derivative(wrt, beta=0.0, window=3).numpy()
        draw(axes, lrs, slope / -slope.min(), index, f"against {label}")
    axes.set_title("without noise, each divided by its steepest fall", fontsize="small")
    axes.set_ylim(-1.1, 1.5)
    for index, window in enumerate((1, 3, 9)):
        slope = curve.derivative("log_lr", method="none", window=window).numpy()
        draw(noisy, lrs, slope, index, f"window {window}")
    noisy.set_title("with noise, raw losses, against ln(rate)", fontsize="small")
    noisy.set_ylim(-6, 6)
    for each in (axes, noisy):
        each.axhline(0.0, color="0.6", linewidth=0.8)
        each.set(xscale="log", ylabel="slope")
        each.legend(fontsize="x-small", loc="upper left")
    noisy.set_xlabel("learning rate")
    return figure


def schedule_kinds() -> Figure:
    """A dozen schedules of sixty steps."""
    kinds = {
        "one_cycle": schedules.one_cycle(60),
        "one_cycle, three_phase": schedules.one_cycle(60, three_phase=True, anneal="linear"),
        "cosine after warmup": schedules.warmup(10).then(schedules.cosine(50)),
        "flat_cosine": schedules.flat_cosine(60),
        "wsd": schedules.wsd(60, 10, 20),
        "inverse_sqrt": schedules.inverse_sqrt(10, 60),
        "sgdr": schedules.sgdr(8, cycle_mult=2, cycles=3),
        "cyclic, triangular2": schedules.cyclic(8, mode="triangular2"),
        "slanted_triangular": schedules.slanted_triangular(60),
        "multistep": schedules.multistep([30, 45], 0.3),
        "polynomial, power 2": schedules.polynomial(60, 2.0),
        "rex": schedules.rex(60),
    }
    figure = Figure(figsize=(8.0, 7.0), layout="constrained")
    panels = figure.subplots(4, 3, sharex=True, sharey=True).flat
    steps = np.arange(66)
    for axes, (name, schedule) in zip(panels, kinds.items(), strict=True):
        axes.plot(steps, schedule.values(steps), "C0")
        momentum = schedule.momentum(steps)
        if momentum is not None:
            axes.plot(steps, momentum, "k:")
        axes.set_title(name, fontsize="small")
        axes.set(ylim=(-0.05, 1.1), xticks=[0, 20, 40, 60], yticks=[0, 1])
        axes.tick_params(labelsize="x-small")
    return figure


# A call of every function that makes a schedule, over some sixty steps.
CALLS = (
    "one_cycle(60)",
    "one_cycle(60, three_phase=True)",
    "cyclic(8, mode='triangular2')",
    "sgdr(8, cycle_mult=2, cycles=3)",
    "warmup(20)",
    "linear_with_warmup(20, 60)",
    "cosine_with_warmup(20, 60)",
    "flat_cosine(60)",
    "wsd(60, 10, 20)",
    "slanted_triangular(60)",
    "inverse_sqrt(10, 60)",
    "constant(0.5)",
    "linear(1.0, 0.1, 60)",
    "cosine(60)",
    "exponential(60, gamma=0.95)",
    "polynomial(60, power=2.0)",
    "rex(60)",
    "step(20, gamma=0.5)",
    "multistep([30, 45], gamma=0.3)",
    "staircase(60, 10, gamma=0.7)",
    "from_function(lambda i: 1 / (1 + i), 60)",
    "sweep(1e-3, 1.0, 60)",
    "from_torch(scheduler, 60)",
)


def schedule_pictures() -> dict[str, Figure]:
    """Return a small picture of each call, by the function's name; of a second one with a 2."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 20)
    names = {**vars(schedules), "scheduler": scheduler}
    found: dict[str, Figure] = {}
    steps = np.arange(70)
    for call in CALLS:
        schedule = eval(call, names)
        figure, (axes,) = canvas(1, 1, 2.3, 1.5)
        axes.plot(steps, schedule.values(steps), "C0")
        momentum = schedule.momentum(steps)
        if momentum is not None:
            axes.plot(steps, momentum, "k:")
        axes.set_title(call, fontsize=7)
        axes.set(ylim=(-0.05, 1.1), xticks=[0, 20, 40, 60], yticks=[0, 1])
        axes.tick_params(labelsize=6)
        name = call.partition("(")[0]
        found[f"{name}_2" if name in found else name] = figure
    return found


def one_cycle_end() -> Figure:
    """The last steps of a one-cycle policy, ours and torch's, and one step more."""
    total = 10
    figure, panels = canvas(1, 2, 8.0, 3.5)
    for axes, anneal in zip(panels, ("cos", "linear"), strict=True):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=1.0, total_steps=total, anneal_strategy=anneal
        )
        theirs = []
        with warnings.catch_warnings():  # torch wants to see the optimizer step
            warnings.simplefilter("ignore")
            for step in range(total + 1):
                if step:
                    scheduler.step()
                theirs.append(optimizer.param_groups[0]["lr"])
        steps = np.arange(total + 1)
        ours = schedules.one_cycle(total, anneal=anneal).values(steps)
        axes.plot(steps, ours, "C0o-", label="lrfast")
        axes.plot(steps, theirs, "C1s--", markerfacecolor="none", label="OneCycleLR")
        axes.axhline(0.0, color="0.6", linewidth=0.8)
        axes.axvline(total - 1, color="0.6", linewidth=0.8)
        axes.set(title=f"{anneal}, total_steps=10", xlabel="step")
        axes.legend(fontsize="x-small")
    panels[0].set_ylabel("multiplier")
    return figure


def bias_correction() -> Figure:
    """Two clocks: a layer that is unfrozen late, and a beta1 that is cycled."""
    figure, (late, cycled) = canvas(1, 2, 8.0, 3.8)
    counts = {"per tensor": first_updates(0.0), "per group": first_updates(1000.0)}
    for index, (label, updates) in enumerate(counts.items()):
        draw(late, np.arange(1, len(updates) + 1), updates, index, f"count {label}")
    late.set_title("a layer unfrozen after 1000 steps", fontsize="small")
    late.set(xlabel="its own step", ylabel="update / learning rate")
    late.legend(fontsize="x-small")
    steps = np.arange(1, 61)
    beta = schedules.one_cycle(60, pct_start=0.5).momentum(steps - 1)
    assert beta is not None
    product, power = 1 - np.cumprod(beta), 1 - beta**steps
    draw(cycled, steps, 100 * (power / product - 1), 0, "1 - beta1 ** t")
    draw(cycled, steps, 0 * power, 1, "product of the betas")
    cycled.set_title("beta1 from 0.95 to 0.85 and back", fontsize="small")
    cycled.set(xlabel="step", ylabel="error of the correction, %")
    cycled.legend(fontsize="x-small")
    return figure


def first_updates(count: float) -> list[float]:
    """Return Adam's first updates for a constant gradient, where the count begins at ``count``."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = lrfast.Adam([parameter], lr=1.0)
    if count:
        zeros = {"exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}
        optimizer.state[parameter].update(zeros | {"step": torch.tensor(count)})
    places = [0.0]
    for _ in range(40):
        parameter.grad = torch.ones(1)
        optimizer.step()
        places.append(float(parameter.detach()))
    return np.abs(np.diff(places)).tolist()


def group_rates() -> Figure:
    """How one call spreads rates over eight layer groups."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    calls: dict[str, dict[str, Any]] = {
        "slice(1e-5, 1e-2)": {"lr": slice(1e-5, 1e-2)},
        "slice(1e-2)": {"lr": slice(1e-2)},
        "1e-2, decay=1/2.6": {"lr": 1e-2, "decay": 1 / 2.6},
        "1e-2, decay=0.75, min_scale=0.3": {"lr": 1e-2, "decay": 0.75, "min_scale": 0.3},
    }
    figure, (axes,) = canvas(1, 1, 8.0, 4.0)
    for index, (label, arguments) in enumerate(calls.items()):
        rates = [group["lr"] for group in lrfast.discriminative(model, **arguments)]
        draw(axes, np.arange(len(rates)), rates, index, label, points=8)
    axes.set(yscale="log", xlabel="layer group, body to head", ylabel="learning rate")
    axes.legend(fontsize="small")
    return figure


def unfreezing() -> Figure:
    """Rates that a fine-tuner used while a timetable unfroze group after group."""
    model, batches = make_task()
    tuner = lrfast.FineTuner(
        model, batches[:20], loss_fn=nn.functional.cross_entropy, progress=False
    )
    timetable = lrfast.gradual(3)
    stage = tuner.fit(3, schedules.one_cycle(60), slice(1e-4, 1e-2), timetable=timetable)
    figure, (axes,) = canvas(1, 1, 8.0, 3.8)
    for group in range(3):
        frozen_until = 20 * (2 - group)
        own = stage.rates[:, group].copy()
        own[:frozen_until] = math.nan
        label = f"group {group}" + (f", frozen until {frozen_until}" if frozen_until else "")
        draw(axes, np.arange(len(own)), own, group, label)
        axes.axvline(frozen_until, color="0.6", linewidth=0.8)
    axes.set(yscale="log", xlabel="step", ylabel="learning rate")
    axes.legend(fontsize="small")
    return figure


def loss_driven() -> Figure:
    """The factors of Plateau, in both ways of counting, and of Greedy for the same losses."""
    levels = np.concatenate([np.linspace(2.0, 1.0, 15), np.full(15, 1.0), np.linspace(1, 0.6, 10)])
    losses = levels + np.random.default_rng(3).normal(0, 0.004, len(levels))
    figure, (shown, factors) = canvas(2, 1, 8.0, 5.0)
    shown.plot(losses, "ko-", markersize=3)
    shown.set(ylabel="loss observed")
    optimizers = [lrfast.SGD([nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(3)]
    driven: dict[str, Any] = {
        f"Plateau, counting as {who}": lrfast.Plateau(
            optimizers.pop(), factor=0.5, patience=3, counting=who.lower()
        )
        for who in ("torch", "Keras")
    }
    driven["Greedy"] = lrfast.Greedy(optimizers.pop(), factor=0.8, patience=3)
    for index, (label, schedule) in enumerate(driven.items()):
        scales = []
        for loss in losses.tolist():
            schedule.observe(loss)
            scales.append(float(schedule.scale))
        draw(factors, np.arange(len(scales)), scales, index, label)
    factors.set(yscale="log", xlabel="observation", ylabel="factor of all rates")
    factors.legend(fontsize="small")
    return figure


def planned_and_done() -> Figure:
    """What an optimizer plans: rate, momentum and decay of three groups."""
    model, _ = make_task()
    schedule = schedules.one_cycle(60).with_weight_decay(schedules.linear(1.0, 0.2, 60))
    groups = lrfast.discriminative(model, slice(1e-4, 1e-2), weight_decay=0.1)
    return plot_schedules(lrfast.AdamW(groups, schedule=schedule))


def telemetry() -> Figure:
    """What the steps of a run recorded on the device."""
    model, batches = make_task()
    optimizer = lrfast.AdamW(
        lrfast.discriminative(model, slice(1e-4, 1e-2)),
        max_grad_norm=0.5,
        telemetry=100,
        zero_grads=True,
        schedule=schedules.one_cycle(100),
    )
    norms = []
    for inputs, targets in batches:
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        norms.append(float(optimizer.grad_norm))
    figure, (norm, ratio) = canvas(2, 1, 8.0, 5.0)
    norm.plot(norms, "k-", linewidth=1, label="before clipping")
    norm.axhline(0.5, color="C3", linestyle="--", label="max_grad_norm")
    norm.set(ylabel="gradient norm", ylim=(0.0, None))
    norm.legend(fontsize="small")
    for group, values in enumerate(optimizer.telemetry().update_ratios.T):
        draw(ratio, np.arange(len(values)), values, group, f"group {group}")
    ratio.set(yscale="log", xlabel="step", ylabel="norm of update / of weights")
    ratio.legend(fontsize="small")
    return figure


def step_bytes() -> Figure:
    """Bytes per parameter of a whole update, in lrfast and in passes of their own."""
    from benchmarks.report.limits import apart, fused  # docs/performance.md has the same numbers

    bars = {"passes of their own": apart(4, 4), "lrfast": fused(4, 4)}
    greys = ("white", "0.9", "0.8", "0.7", "0.6")
    figure, (axes,) = canvas(1, 1, 8.0, 2.4)
    for row, (name, options) in enumerate(bars.items()):
        left = 0
        for index, (part, size) in enumerate({"AdamW": bytes_moved(4, 8), **options}.items()):
            axes.barh(name, size, left=left, color=greys[index], edgecolor="black")
            if size:
                axes.annotate(f"{part} {size}", (left + size / 2, row), ha="center", fontsize=6)
            left += size
        axes.annotate(f" {left}", (left, row), va="center")
    axes.set(xlabel="bytes per float32 parameter", xlim=(0, 75))
    return figure


PICTURES: tuple[Callable[[], Figure], ...] = (
    *(range_test, declined, smoothing, derivative, schedule_kinds, one_cycle_end),
    *(planned_and_done, bias_correction, group_rates, unfreezing, loss_driven, telemetry),
    step_bytes,
)


def main(folder: Path) -> None:
    """Write all pictures: of the concepts, and of the benchmarks."""
    from benchmarks.report import plots, results
    from benchmarks.research.suggestions import plot, report

    found = results.load()
    # Text as text: the shapes of letters would be most of a file.
    with mpl.rc_context({"svg.hashsalt": "lrfast", "svg.fonttype": "none"}):
        for picture in PICTURES:
            write(picture(), folder / "concepts" / f"{picture.__name__}.svg")
        for name, figure in schedule_pictures().items():
            write(figure, folder / "schedules" / f"{name}.svg")
        write(plots.ratios(found), folder / plots.RATIOS)
        write(plot.libraries(report.newest(report.RESULTS)), folder / report.PICTURE)
    plots.draw_all(found, folder)


def write(figure: Figure, path: Path) -> None:
    """Save a figure as an SVG that is small, and the same at every call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = io.StringIO()
    for axes in figure.axes:
        axes.minorticks_off()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    # A hundredth of a point is more than anybody sees.
    text = re.sub(r"(\.\d\d)\d+", r"\1", written.getvalue())
    path.write_text("".join(f"{line.rstrip()}\n" for line in text.splitlines()))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
