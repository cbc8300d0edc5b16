"""The benchmarks: equal work is checked, what is counted is there, and pages come from results."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import lrfast
from benchmarks import memory, provenance
from benchmarks.report import headlines, page, plots, readme, results, small_states, tables
from benchmarks.research.in_warmup import report as in_warmup
from benchmarks.research.pretrained import report as pretrained
from benchmarks.research.small_states import masters
from benchmarks.research.small_states import report as small_study
from benchmarks.research.small_states import tasks as small_tasks
from benchmarks.research.suggestions import plot, rate_free, report, train, why
from benchmarks.research.suggestions.measure import ALL
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.tasks import Task
from benchmarks.speed import counting, implementations, timing
from benchmarks.speed import small_states as small
from benchmarks.speed.implementations import Contender, Start
from benchmarks.training.trainers import CAPTURED, EAGER, FASTEST, OURS

ROOT = Path(__file__).parents[2]


def start() -> Start:
    return Start([[(3, 4), (3,)], [(5,)]], torch.float32, "cpu")


def sgd(begin: Start, lr: float) -> Contender:
    groups = begin.groups(2)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    return Contender(implementations.params_of(groups), optimizer, optimizer.step)


def test_layers_are_dealt_out_to_groups_in_order() -> None:
    begin = Start([[(n,)] for n in range(1, 8)], torch.float32, "cpu")
    sizes = [[param.numel() for param in group["params"]] for group in begin.groups(3)]
    assert sizes == [[1, 2, 3], [4, 5], [6, 7]]


def test_who_does_other_work_or_fails_is_refused_with_the_reason() -> None:
    begin = start()

    def broken() -> Contender:
        raise RuntimeError("needs another machine")

    same, other = partial(sgd, begin, 0.1), partial(sgd, begin, 0.11)
    makers: dict[str, Callable[[], Contender]]
    makers = {"torch-fused": same, "peer": same, "wrong": other, "broken": broken}
    found, refused = implementations.participants(makers, begin)
    assert list(found) == ["torch-fused", "peer"]
    assert refused["broken"] == "needs another machine"
    assert refused["wrong"].startswith("weight of wrong differs by ")


def test_ours_may_not_do_other_work() -> None:
    begin = start()
    makers = {"torch-forloop": partial(sgd, begin, 0.1), "lrfast": partial(sgd, begin, 0.11)}
    with pytest.raises(AssertionError, match="weight of lrfast differs"):
        implementations.participants(makers, begin)


def test_torchs_other_implementations_are_refused_for_wrong_states_too() -> None:
    begin = start()

    def with_other_states() -> Contender:
        groups = begin.groups(2)
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)

        def step() -> None:
            optimizer.step()
            for state in optimizer.state.values():
                state["momentum_buffer"].mul_(1.01)

        return Contender(implementations.params_of(groups), optimizer, step)

    makers: dict[str, Callable[[], Contender]]
    makers = {"torch-forloop": partial(sgd, begin, 0.1), "torch-fused": with_other_states}
    makers["lrfast"] = makers["torch-forloop"]
    found, refused = implementations.participants(makers, begin)
    assert list(found) == ["torch-forloop", "lrfast"]
    assert "torch-fused differs" in refused["torch-fused"]


def test_a_value_that_is_not_a_number_is_other_work() -> None:
    begin = start()
    makers = {"torch-forloop": partial(sgd, begin, 0.1), "lrfast": partial(sgd, begin, math.nan)}
    with pytest.raises(AssertionError, match="weight of lrfast differs by nan"):
        implementations.participants(makers, begin)


def test_counts_are_those_of_one_prepared_step() -> None:
    kept: list[Any] = []
    work = timing.Work(lambda: kept.append(torch.ones(1000).clone()), kept.clear)
    found = counting.counts(work, "cpu")
    assert found["allocations"] == 2
    assert found["peak_bytes"] == 2 * 4000
    assert found["ops"] >= 2


def test_works_take_turns_and_the_first_steps_of_a_run_do_not_count() -> None:
    order: list[str] = []
    works = {
        "a": timing.Work(lambda: order.append("a"), lambda: order.append("prepared")),
        "b": timing.Work(lambda: order.append("b"), every=4),
    }
    found = timing.interleaved(works, "turns", 0.0, timing.Clock("cpu"))
    assert order[:5] == ["prepared", "a", "b", "prepared", "a"]
    assert len(found["a"].device) == timing.FEWEST and len(found["b"].device) == 2
    found = timing.interleaved(works, "runs", 0.0, timing.Clock("cpu"))
    assert len(found["a"].host) == timing.LIMITS["runs"][0] * (timing.RUN - timing.UNCOUNTED)


def test_roofs_move_the_bytes_that_they_state() -> None:
    works, moved = timing.roofs(1200, "cpu")
    assert moved == {"copy": 800, "triad": 1200, "triad in place": 1200}
    for work in works.values():
        work.step()


def test_small_states_do_equal_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who moves weights otherwise, or cannot, is refused with the reason."""
    own = small.IMPLEMENTATIONS
    kept = {name: each for name, each in own.items() if name.startswith(("lrfast", "torch-fused"))}
    wrong = small.Implementation(partial(torch.optim.AdamW, betas=(0.1, 0.999)), 8)
    missing = small.Implementation(small._of("no_such_package", "AdamW"), 8)
    entries = kept | {"wrong": wrong, "missing": missing}
    monkeypatch.setattr(small, "IMPLEMENTATIONS", entries)
    begin = Start([[(90, 64), (64,)]], torch.float32, "cpu")
    found, refused = small.participants(begin)
    assert found.keys() == kept.keys()
    assert refused["wrong"].startswith("its weights move otherwise: by ")
    assert refused["missing"] == "No module named 'no_such_package'"
    coded = found["lrfast, 8bit"].optimizer.state[found["lrfast, 8bit"].params[0]]
    assert "exp_avg_codes" in coded and round(entries["lrfast, 8bit"].moved, 2) == 16.02
    masters = {"24bit master, 8bit": (torch.int8, 12.02), "32bit master": (torch.int16, 26)}
    for name, (dtype, moved) in masters.items():
        full = f"lrfast, bf16 weights, {name}"
        (state, _) = (found[full].optimizer.state[param] for param in found[full].params)
        assert state["master_bits"].dtype == dtype and round(entries[full].moved, 2) == moved
        assert ("exp_avg_codes" in state) == ("8bit" in name)
    row = {
        "table": "small states", "parameters": "two", "elements": 100, "floor": 1.25,
        "turns_us": {"torch-fused": [1, 3000, 3], "lrfast, 8bit": [1, 2000, 3],
                     "triad in place": [1, 500, 3]},
        "bytes": {"torch-fused": 2800, "lrfast, 8bit": 1602, "triad in place": 1200},
        "refused": {"flashoptim": "needs a GPU"},
    }  # fmt: skip
    result = {
        "machine": "one", "threads": 2, "torch": "2", "python": "3", "commit": "c" * 40,
        "dirty": False, "rows": [row],
    }  # fmt: skip
    assert tables.small_states(result)[3] == (
        "| two | lrfast, 8bit | 2.00 | 1.50 | 1.25 | 16.0 | 33% |"
    )
    block = small_states.speed_table(result)
    assert "| lrfast, 8bit | 16 | 2.0 (1.50) |" in block
    assert "- flashoptim did not take part: needs a GPU" in block


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel is not Linux")
@pytest.mark.parametrize(
    ("name", "width", "wanted"),
    [("AdamW, 8bit", "float32", 2), ("AdamW, 8bit, 24bit master", "bfloat16", 3)],
)
def test_states_take_the_resident_memory_that_they_say(name: str, width: str, wanted: int) -> None:
    """Over 100 million parameters; 4 MB are the pages that two processes differ by."""
    model = "hundred_million"
    measured = memory.states_of([name], model, width)[name]
    pages = 4e6 / memory.elements(model)
    assert wanted < measured + pages < wanted + 0.1 + 2 * pages


# Pages.


def test_the_committed_pages_are_what_the_results_say() -> None:
    found = results.load()
    assert page.PAGE.read_text() == page.render(found)
    text = readme.README.read_text()
    assert text == provenance.with_blocks(text, readme.blocks(found, readme.suggestions_result()))
    guide = readme.LORA.read_text()
    assert guide == provenance.with_blocks(guide, readme.lora_blocks(found))
    states = small_states.PAGE.read_text()
    assert states == provenance.with_blocks(states, small_states.blocks(found))


def test_the_page_of_the_suggestions_is_what_its_result_file_says() -> None:
    text, result = report.PAGE.read_text(), report.newest(report.RESULTS)
    assert text == report.page(text, result), (
        "run `python -m benchmarks.research.suggestions --page`"
    )
    reasons = why.PAGE.read_text()
    assert reasons == why.page(reasons, result)
    changed = copy.deepcopy(result)
    for task in changed["sealed"].values():
        task["rules"]["slide"]["regret"] = 0.625
    (row,) = [line for line in report.opening(changed).splitlines() if "`slide`" in line]
    assert row.startswith("| fastai, `slide` | 100 | 0.62 | 0.62 | ")
    (row,) = [line for line in why.answers(changed).splitlines() if "`slide`" in line]
    assert row.startswith("| fastai, `slide` | 100 | 0.62 | 0.62 | 0.62 | ")
    figure = plot.libraries(changed)
    lengths = [bar.get_width() for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert lengths.count(0.625) == 1 and max(lengths) == plot.LONGEST


def test_a_method_of_the_study_is_told_the_loss_before_each_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By losses that fall by a known factor; the judge's loss is not told, and 0 / 0 diverges."""
    told: list[tuple[float, float]] = []

    class Told(torch.optim.SGD):
        def step_func(self, loss: float) -> None:
            told.append((loss, self.param_groups[0]["lr"]))
            1 / float(loss > stops)
            super().step()

    def make(seed: int) -> train.Problem:
        model = torch.nn.Linear(1, 1, bias=False).double()
        torch.nn.init.constant_(model.weight, 2.0 + seed)
        rows = (torch.ones(4, 1).double(), torch.zeros(4, 1).double())
        return train.Problem(model, rows, rows, torch.nn.functional.mse_loss)

    monkeypatch.setattr(train, "STEPS", 5)
    monkeypatch.setattr(rate_free, "GRID_SEEDS", range(1))
    method = rate_free.Method(
        lambda model, _: Told(model.parameters(), lr=0.25), falls=False, warm_up=2
    )
    monkeypatch.setattr(rate_free, "METHODS", {"told": method})
    stops, losses, store = 0.0, [4.0], Store(tmp_path)
    for lr in (lrs := [0.125, 0.25, 0.25, 0.25, 0.25]):
        losses.append(losses[-1] * (1 - 2 * lr) ** 2)
    task = Task("weight", make, lrfast.SGD, 4)
    rate_free.fill_rate_free(task, store)
    assert told == list(zip(losses[:-1], lrs, strict=True))
    stops = 0.5
    rate_free.fill_rate_free(dataclasses.replace(task, name="stopped"), store)
    found = [
        store.records(each, "rate-free")[0]["valid_loss"]
        for each in (task, dataclasses.replace(task, name="stopped"))
    ]
    assert found == [losses[-1], math.inf]


def test_the_reference_of_schedule_free_plus_is_that_of_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = b"class AdamCScheduleFreePlusPaper: ...\n"
    (path := tmp_path / "reference.py").write_bytes(code)
    for value in ("", str(tmp_path / "missing.py"), str(path)):
        monkeypatch.setenv(rate_free.PLUS, value)
        with pytest.raises(ImportError, match=r"must be the path of https://.*, got '"):
            rate_free.reference()
    # `git hash-object` of these bytes.
    monkeypatch.setattr(rate_free, "PLUS_BLOB", "d470c301b632360cd3da6acbea0e6a404a324ac3")
    assert "AdamCScheduleFreePlusPaper" in rate_free.reference()


def test_the_page_of_small_states_is_what_its_result_file_says() -> None:
    text, result = small_study.PAGE.read_text(), report.newest(small_study.RESULTS)
    wider = {half: provenance.newest(folder) for half, folder in small_study.MASTERS.items()}
    assert text == small_study.page(text, result, wider), (
        "run `python -m benchmarks.research.small_states --page`"
    )
    changed = copy.deepcopy([result, wider["bfloat16"]])
    sides = ("8bit", "24bit, 8bit")
    names = [next(n for n, e in each["tasks"].items() if "ratios" in e) for each in changed]
    for each, name, side in zip(changed, names, sides, strict=True):
        each["tasks"][name]["ratios"][side] = [1.25, 1.125, 1.5]
    refused = changed[1]["tasks"]["no task"] = {"seconds": None, "why": "no kernel"}
    found = small_study.page(text, changed[0], wider | {"bfloat16": changed[1]})
    rows = {line.split(" ")[1]: line for line in found.splitlines() if line.startswith("| ")}
    assert "| worse | 1.250 (1.125 to 1.500) |" in rows[names[0]]
    assert " | 1.250 (1.125 to 1.500) | " in rows[names[1]]
    assert f"Not trained in bfloat16: no task ({refused['why']})." in found


@pytest.mark.parametrize("half", masters.HALVES)
def test_sides_of_the_study_of_masters_keep_what_their_names_say(half: str, tmp_path: Path) -> None:
    """The models are half; one that cannot begin is listed with the reason."""
    task = dataclasses.replace(ALL["digits-mlp-sgd"], name="masters")
    found = {}
    for side in masters.sides(half):
        problem, optimizer = masters._begin(task, half, task.make(3), 0.1, 3, side)
        assert {each.dtype for each in problem.model.parameters()} == {masters.HALVES[half]}
        assert problem.model(problem.train[0][:2]).dtype == torch.float32
        assert train.update(problem, optimizer, next(train.batches(problem.train, 64, 3)))
        (state, *_) = optimizer.state_dict()["state"].values()
        bits = state["master_bits"].dtype if "master_bits" in state else None
        wide = state.get("momentum_buffer", state.get("momentum_buffer_codes")).dtype
        found[side] = [bits, wide]
    assert found == {
        "32bit, float32": [torch.int16, torch.float32],
        "24bit, float32": [torch.int8, torch.float32],
        "24bit, 8bit": [torch.int8, torch.uint8],
        f"{half}, float32": [None, torch.float32],
    }
    store = Store(tmp_path, masters.fingerprint)
    refusing = dataclasses.replace(task, name="refusing", options={"stochastic_rounding": True})
    for each in (task, refusing):
        store.add(each, {"kind": "cost"} | masters._cost(each, half))
    for seed in range(masters.TURN):
        for side in masters.sides(half):
            record = {"side": side, "seed": seed, "rate": 0.1, "bytes": 1.0}
            record["valid_loss"] = (1 + 0.001 * seed) * (1.5 if side == "24bit, 8bit" else 1.0)
            store.add(task, {"kind": "masters"} | record)
    entry = masters._entry(task, store, half)
    assert entry["ratios"]["24bit, 8bit"] == pytest.approx([1.5] * 3)
    assert "master" in masters._entry(refusing, store, half)["why"]


def test_a_scaled_loss_trains_as_the_loss_does() -> None:
    """Gradients are scaled where a float16 model ends, and unscaled in the step."""
    task = dataclasses.replace(ALL["digits-mlp-sgd"], name="masters", options={})
    problem, optimizer = masters._begin(task, "float16", task.make(3), 0.5, 3, masters.EXACT)
    before = [each.detach().double() for each in problem.model.parameters()]
    inputs, targets = next(train.batches(problem.train, 64, 3))
    plain = copy.deepcopy(problem.model.body).double()
    problem.loss_fn(plain(inputs.double()), targets).backward()
    assert train.update(problem, optimizer, (inputs, targets))
    assert problem.model.scaler.get_scale() == 2.0**16
    for old, new, like in zip(before, problem.model.parameters(), plain.parameters(), strict=True):
        assert like.grad is not None and bool(like.grad.any())
        moved = old - optimizer.master_params()[new].double()
        assert torch.allclose(moved, 0.5 * like.grad, rtol=0.02, atol=1e-5)


def test_a_ratio_is_equal_where_two_one_sided_tests_say_so() -> None:
    """The 90 % interval of 4 pairs by hand: Student's t with 3 degrees of freedom is 2.3534."""
    logs = [0.01, 0.02, 0.03, 0.06]
    mean, deviation = 0.03, (0.0014 / 3) ** 0.5
    found = small_tasks.ratio([math.exp(each) for each in logs], [1.0] * 4)
    half = 2.3534 * deviation / 2
    assert found == pytest.approx([math.exp(mean + s * half) for s in (0, -1, 1)], rel=1e-5)
    assert small_tasks.ratio([1.0, None], [1.0, 1.0]) is None
    ends = {"equal": (0.98, 1.02), "no worse": (0.97, 1.02), "undecided": (0.99, 1.03)}
    ends |= {"worse": (1.001, 1.021)}
    assert all(small_tasks.verdict((1.0, *pair)) == name for name, pair in ends.items())
    assert small_tasks.verdict(None) == "worse"


def test_the_page_begins_with_ratios_and_says_how_often_torch_is_ahead() -> None:
    found = copy.deepcopy(results.load())
    name, result = headlines.newest(found)
    ours = {title: pair[1] for title, pair in headlines.times(result).items()}
    for row in results.rows_of(result, "steps"):
        if (row["work"], row["parameters"], row["groups"]) == ("AdamW", "lora", 224):
            row["runs_us"]["lrfast"][1] *= 1000
    title = next(iter(page.HEADLINES))
    assert headlines.times(result)[title][1] == pytest.approx(1000 * ours.pop(title))
    assert all(headlines.times(result)[other][1] == time for other, time in ours.items())
    before, after = page.opening(results.load()), page.opening({name: result})
    changed = [(a, b) for a, b in zip(*map(str.splitlines, (before, after)), strict=True) if a != b]
    assert len(changed) == 2 and changed[0][1].endswith("0.01 |")
    lost = [text.partition("ahead in ")[2].split()[0] for text in (before, after)]
    assert int(lost[1]) == (0 if lost[0] == "none" else int(lost[0])) + 1


def test_the_chart_of_ratios_marks_what_loses() -> None:
    figure = plots.bars({"wins": 4.0, "ties": 1.0, "loses": 0.5}, ["4", "1", "0.5"], 1, 3)
    (axes,) = figure.axes
    bars: list[Any] = list(axes.patches)
    assert [bar.get_hatch() or "" for bar in bars] == ["", "", "//"]
    assert [bar.get_width() for bar in bars] == [3.0, 0.0, -0.5]
    assert [text.xy[0] for text in axes.texts] == [3, 1, 1]  # at the end of the axis, or the bar
    assert [each.get_text() for each in axes.get_yticklabels()] == ["wins", "ties", "loses"]


def test_the_plot_of_a_device_is_of_its_newest_result(tmp_path: Path) -> None:
    found = results.load()
    name, newest = next((name, r) for name, r in found.items() if results.rows_of(r, "scaling"))
    older = copy.deepcopy(newest)
    for row in results.rows_of(older, "scaling"):
        row["count"] *= 3
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    plots.draw_all(
        {"newer, without the rows": {**newest, "rows": []}, name: newest}, tmp_path / "one"
    )
    plots.draw_all({name: newest, "older": older}, tmp_path / "two")
    one, two = ([*(tmp_path / folder).iterdir()] for folder in ("one", "two"))
    assert [path.name for path in one + two] == 2 * [plots.name_of(newest)]
    assert one[0].read_bytes() == two[0].read_bytes()
    assert plots.draw(older, tmp_path / "older.svg")
    assert (tmp_path / "older.svg").read_bytes() != one[0].read_bytes()


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold"):
        provenance.with_blocks("text <!-- speed:begin --> more", {"speed": "block"})


def gpu_result() -> results.Result:
    """What a GPU's result file would hold of the rows that aims are about; figures are made up."""
    large = {"lrfast": [7.0, 8.0, 9.0], "copy": [1.9, 2.0, 2.1]}
    small = {"lrfast": [4.0, 5.0, 6.0], "torch-fused": [90.0, 100.0, 110.0]}
    training = {CAPTURED: 20.0, OURS: 40.0, FASTEST: 50.0, EAGER: 60.0, f"{FASTEST}, update": 20.0}
    quartiles = {name: [time - 1, time, time + 1] for name, time in training.items()}
    common: dict[str, Any] = {"work": "AdamW", "floor": None, "share_floor": 0.92, "refused": {}}
    rows = [
        {
            **common,
            "table": "steps",
            "parameters": "hundred_million",
            "groups": 1,
            "bytes": {"lrfast": 2800, "copy": 800},
            "turns_us": large,
            "counts": {},
        },
        {
            **common,
            "table": "steps",
            "parameters": "lora",
            "groups": 224,
            "bytes": {"lrfast": 56, "torch-fused": 56},
            "runs_us": small,
            "runs_host_us": small,
            "counts": {"lrfast": {"launches": 1, "ops": 0, "allocations": 0, "peak_bytes": 0}},
        },
        {
            "table": "training",
            "model": "cnn",
            "batch": 2,
            "floor": 1.5,
            "share": 0.25,
            "runs_us": quartiles,
            "runs_host_us": quartiles,
        },
    ]
    facts = {
        "date": "2026-01-01",
        "commit": "0" * 40,
        "dirty": False,
        "machine": "m",
        "python": "3",
    }
    return {**facts, "device": "NVIDIA X", "torch": "2", "threads": 2, "rows": rows}


def test_aims_on_a_gpu_stand_beside_what_was_measured_there() -> None:
    unmeasured = page.gpu_aims({})
    assert unmeasured.count("not measured yet") == len(page.GPU_AIMS)
    lines = page.gpu_aims({"file": gpu_result()}).splitlines()
    assert [line.split(" | ")[2].strip(" |") for line in lines[-5:]] == [
        f"{2800 / 8 / (800 / 2):.0%}",
        "1",
        "20.0",
        "20.0",
        "3.00",
    ]
    text = page.section(gpu_result())
    assert "| training | cnn, 2 | runs | lrfast captured | 20.0 |" in text


def test_the_floor_of_training_holds_where_the_update_is_a_good_part() -> None:
    rows = [row for row in gpu_result()["rows"] if row["table"] == "training"]
    (line,) = tables.training_lines(rows)
    assert line[-4:] == ["40%", "1.25", "1.50", "1.5"]
    rows[0]["runs_us"][f"{FASTEST}, update"] = [1.0, 2.0, 3.0]
    (line,) = tables.training_lines(rows)
    assert line[-1] == ""


@pytest.mark.full
@pytest.mark.usefixtures("benchmarks_run")
def test_a_run_can_be_kept_and_rendered(tmp_path: Path) -> None:
    """One case for each kind of row that is quick to time, from pytest to the page."""
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-W", "default", "-q"]
    command += ["--benchmark-only", f"--benchmark-json={out}", "--seconds=0", "--threads=1"]
    command += ["benchmarks", "-m", "quick and not gpu", "-k", "whole_update-mlp or parameters"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (result,) = results.keep(json.loads(out.read_text()))
    text = page.section(result)
    assert "| whole update | mlp | 3 | runs |" in text
    assert "| parameters | 1,000 |" in text
    assert plots.draw(result, tmp_path / "plot.svg")


def test_how_far_best_learning_rates_are_from_the_usual_ones() -> None:
    """What `typical_deviation` rounds."""
    result = readme.suggestions_result()
    apart: dict[str, list[float]] = {"SGD": [], "others": []}
    for part in ("tasks", "held_out", "unseen", "fresh", "broad"):
        for task in result[part].values():
            (usual,) = task["rules"]["prior alone"]["rates"]
            kind = "SGD" if task["optimizer"] == "SGD" else "others"
            apart[kind].append(math.log10(task["best_rate"] / usual))
    for kind, name in (("SGD", "SGD"), ("others", "AdamW")):
        found = statistics.pstdev(apart[kind])
        assert lrfast.suggest.typical_deviation(name) == pytest.approx(found, abs=0.05)


def test_pretrained_networks_want_all_their_weights_counted() -> None:
    tasks = provenance.newest(pretrained.RESULTS)["tasks"]
    of = {
        rule: statistics.mean(task["rules"][rule]["regret"] for task in tasks.values())
        for rule in ("auto", pretrained.FEW)
    }
    assert of["auto"] == pytest.approx(0.24, abs=0.005)  # as docs/design.md says
    assert of[pretrained.FEW] == pytest.approx(1.10, abs=0.005)


def test_the_page_of_pretrained_networks_is_what_its_result_says() -> None:
    result = provenance.newest(pretrained.RESULTS)
    assert pretrained.PAGE.read_text() == pretrained.page(result)
    assert set(result["tasks"]) == {task.name for task in pretrained.TASKS}


def test_the_page_of_the_warm_up_is_what_its_result_says() -> None:
    result = provenance.newest(in_warmup.RESULTS)
    assert in_warmup.PAGE.read_text() == in_warmup.page(result)
    assert len(result["tasks"]) == len(in_warmup.TASKS)
    assert all(len(task["runs"]) == len(in_warmup.WAYS) for task in result["tasks"].values())


def test_the_page_of_the_warm_up_says_whether_the_aim_is_met() -> None:
    result = copy.deepcopy(provenance.newest(in_warmup.RESULTS))
    own, other, _ = in_warmup.WAYS
    for gap, verdict in ((0.019, "meets it"), (0.021, "misses it")):
        for task in result["tasks"].values():
            task["regret"][own] = task["regret"][other] + gap
        text = in_warmup.page(result)
        assert f"The warm-up {verdict}, with {gap:+.3f}" in " ".join(text.split())
