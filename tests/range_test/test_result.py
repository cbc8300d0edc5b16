"""The result of a range test: what it suggests, sets and undoes, its texts and its HTML."""

from __future__ import annotations

import base64
import re
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from results import INF, NAN, make_result
from torch import nn

from lrfast import RangeTest
from lrfast._utils.tables import Table
from lrfast.suggest import Suggestion


def make_optimizer(rates: Any, names: Any = None) -> torch.optim.Optimizer:
    groups: list[Any] = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    for group, name in zip(groups, names or (), strict=False):
        group["name"] = name
    return torch.optim.SGD(groups, lr=0.5)


def rates_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [group["lr"] for group in optimizer.param_groups]


# Rates.


def test_the_suggestion_is_verified_if_there_is_one() -> None:
    plain = make_result()
    assert plain.rule == "auto" and plain.suggestion is plain.suggestions["auto"]
    assert plain.suggested_lrs() == [1e-3]
    result = make_result(suggestions=[Suggestion(2e-3, "verified", "it won", 1.0)])
    assert result.rule == "verified" and result.suggestion.lr == 2e-3
    assert result.suggested_lrs() == result.suggested_lrs("verified") == [2e-3]
    assert result.suggested_lrs("auto") == [1e-3]


def test_rates_follow_the_sweep() -> None:
    ranges = ((1e-6, 1.0), (1e-5, 10.0), (0.3, 0.3), (1e-6, 1e-2))
    result = make_result(ranges=ranges, lr=1e-3)
    np.testing.assert_allclose(result.suggested_lrs(), [1e-3, 1e-2, 0.3, 1e-4], rtol=1e-12)
    np.testing.assert_allclose(result.ratios[:2], [1, 10], rtol=1e-12)
    assert result.ratios == result.sweep.ratios and result.ratios[2:] == (None, None)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("slide", "rule 'slide' suggests no rate: too short"),
        ("verified", "rule 'verified' needs candidates .* run the range test with verify="),
        ("steap", "got 'steap'; did you mean 'steep'"),
        ("valley", "rule must be one of auto, slide, .* got 'valley'"),
        ("own", "rule 'own' must suggest a finite rate above 0, got nan"),
        ("infinite", "rule 'infinite' must suggest a finite rate above 0, got inf"),
        ("zero", "rule 'zero' must suggest a finite rate above 0, got 0.0"),
        ("negative", "rule 'negative' must suggest a finite rate above 0, got -0.1"),
    ],
)
def test_rules_without_a_rate(rule: str, message: str) -> None:
    odd = {"slide": None, "own": NAN, "infinite": INF, "zero": 0.0, "negative": -0.1}
    entries = [Suggestion(lr, name, "too short", 0.5) for name, lr in odd.items()]
    result = make_result(suggestions=entries)
    optimizer = make_optimizer([0.25])
    for call in (lambda: result.suggested_lrs(rule), lambda: result.apply(optimizer, rule)):
        with pytest.raises(ValueError, match=message):
            call()
    assert rates_of(optimizer) == [0.25]


# Setting rates, and the way back.


def test_rates_of_numpy_do_not_get_into_the_optimizer() -> None:
    optimizer = make_optimizer([0.1])
    make_result(lr=np.float64(1e-3)).apply(optimizer)
    assert type(optimizer.param_groups[0]["lr"]) is float


def test_applied_rates_are_a_list_with_a_way_back() -> None:
    result = make_result(ranges=((1e-7, 0.1), (1e-6, 1.0)), reference=1, lr=2e-3)
    optimizer = make_optimizer([0.1, 0.5], names=["body"])
    applied = result.apply(optimizer)
    expected = result.suggested_lrs()
    assert isinstance(applied, list) and applied == expected == applied.new
    np.testing.assert_allclose(expected, [2e-4, 2e-3], rtol=1e-12)
    assert rates_of(optimizer) == expected and applied.old == [0.1, 0.5]
    lines = ["group  old      new", "body   1.0e-01  2.0e-04", "1      5.0e-01  2.0e-03"]
    assert str(applied).splitlines() == lines
    optimizer.param_groups[0]["lr"] = 7.0
    for _ in range(2):
        applied.undo()
        assert rates_of(optimizer) == [0.1, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensor_rates_are_set_in_place(dtype: torch.dtype) -> None:
    tensor = torch.tensor(0.3, dtype=dtype)
    before = tensor.clone()
    optimizer = make_optimizer([tensor])
    applied = make_result().apply(optimizer)
    assert rates_of(optimizer)[0] is tensor
    assert tensor.item() == torch.tensor(1e-3, dtype=dtype).item()
    applied.undo()
    assert rates_of(optimizer)[0] is tensor and torch.equal(tensor, before)


def test_held_groups_keep_their_rate() -> None:
    result = make_result(ranges=((1e-6, 1.0), (0.3, 0.3), (0.0, 0.0)))
    optimizer = make_optimizer([0.1, 0.2, 0.0])
    assert result.suggested_lrs() == [1e-3, 0.3, 0.0]
    applied = result.apply(optimizer)
    assert applied == rates_of(optimizer) == [1e-3, 0.2, 0.0]
    assert applied.old == [0.1, 0.2, 0.0]


@pytest.mark.parametrize(
    ("ranges", "lr", "message"),
    [
        (((1e-6, 1.0), (1e-12, 1e-6)), 1e-320, "above 0, got 0.0 for group 1"),
        (((1e-12, 1e-6), (1e-6, 1.0)), 1e308, "above 0, got inf for group 1"),
    ],
)
def test_rates_out_of_range_are_refused(ranges: Any, lr: float, message: str) -> None:
    optimizer = make_optimizer([0.1, 0.2])
    with pytest.raises(ValueError, match=message):
        make_result(ranges=ranges, lr=lr).apply(optimizer)
    assert rates_of(optimizer) == [0.1, 0.2]


def test_another_number_of_groups_is_refused() -> None:
    result = make_result()
    two = make_optimizer([0.1, 0.2])
    with pytest.raises(ValueError, match="must have the 1 param groups of the range test, got 2"):
        result.apply(two)
    assert rates_of(two) == [0.1, 0.2]
    optimizer = make_optimizer([0.1])
    applied = result.apply(optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.7})
    message = "must have the 1 param groups that the rates were applied to, got 2"
    with pytest.raises(ValueError, match=message):
        applied.undo()
    assert rates_of(optimizer) == [1e-3, 0.7]


# Repeats.


def test_the_band_is_the_quartiles_of_the_finite_losses() -> None:
    assert make_result().band is None
    rows = [[4.0, 1.0, 5.0, NAN, 9.0], [2.0, INF, NAN, NAN, 9.0], [1.0, 3.0, NAN, -INF, 9.0]]
    low, high = make_result(repeats=np.array(rows)).band or ((), ())
    np.testing.assert_array_equal(low, [1.5, 1.5, 5.0, NAN])
    np.testing.assert_array_equal(high, [3.0, 2.5, 5.0, NAN])


# Text.


def test_the_table_marks_the_rule_used() -> None:
    others = [
        Suggestion(None, "slide", "too short", 0.0),
        Suggestion(2e-2, "cyclic", "a pair", 0.25, base_lr=5e-3),
    ]
    lines = [
        "   rule    lr                  confidence  reason",
        "*  auto    1.0e-03             0.90        a reason",
        "   slide   none                0.00        too short",
        "   cyclic  5.0e-03 to 2.0e-02  0.25        a pair",
    ]
    assert make_result(suggestions=others).table().splitlines() == lines
    verified = Suggestion(2e-3, "verified", "it won", 1.0)
    *_, last = make_result(suggestions=[*others, verified]).table().splitlines()
    assert last == "*  verified  2.0e-03             1.00        it won"


def test_summaries() -> None:
    result = make_result(outcome="diverged", notes=("a note",))
    assert str(result).splitlines() == [
        "Range test: 4 points from 1.0e-06 to 1.0e+00, diverged in 1.0 s",
        "auto suggests 1.0e-03 (confidence 0.90): a reason",
        "a note",
    ]
    span = "4 points from 1.0e-06 to 1.0e+00"
    assert repr(result) == f"RangeTest({span}, diverged, auto: 1.0e-03)"
    declined = make_result([NAN], lr=None)
    assert "auto has no suggestion (confidence 0.90): a reason" in str(declined)
    assert repr(declined) == "RangeTest(1 point from 1.0e-06 to 1.0e-06, completed, auto: none)"
    assert repr(make_result([])) == "RangeTest(no points, completed, auto: 1.0e-03)"


# Notebooks.


class Balanced(HTMLParser):
    """Keeps text and images; fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.strong: list[str] = []
        self.images: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in {"div", "p", "br", "table", "thead", "tbody", "tr", "th", "td", "strong"} | {
            "img",
            "pre",
        }
        if tag == "img":
            assert dict(attrs)["alt"]
            self.images.append(dict(attrs)["src"])
        elif tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "td" in self.open:
            self.cells.append(data)
        if "strong" in self.open:
            self.strong.append(data)


def parsed(result: RangeTest) -> Balanced:
    parser = Balanced()
    parser.feed(result._repr_html_())
    parser.close()
    assert parser.open == []
    return parser


def test_html_breaks_no_number_and_no_sentence() -> None:
    html = make_result()._repr_html_()
    numbers = re.findall(r"<td style=\"([^\"]*)\">(?:<strong>)?[-\d.e+]+<", html)
    assert numbers and all("white-space:nowrap" in style for style in numbers)
    assert html.partition("<table>")[0].count("<br>") == 1 + len(make_result().notes)


def make_hostile() -> RangeTest:
    reason = "<script>alert('1 & 2')</script>"
    entries = [Suggestion(2e-3, "verified", reason, 1.0), Suggestion(None, "<b>", "no", 0.0)]
    return make_result(suggestions=entries, notes=("a <note> &amp;",))


def test_html_is_balanced_and_escaped() -> None:
    page = parsed(make_hostile())
    assert page.cells == [
        *("auto", "1.0e-03", "0.90", "a reason"),
        *("verified", "2.0e-03", "1.00", "<script>alert('1 & 2')</script>"),
        *("<b>", "none", "0.00", "no"),
    ]
    assert page.strong == page.cells[4:8]
    assert "a <note> &amp;" in page.texts
    (image,) = page.images
    kind, data = image.split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data, validate=True).startswith(b"\x89PNG\r\n\x1a\n")


def test_html_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    result = make_hostile()
    page = parsed(result)
    assert page.images == [] and page.texts[-1] == result.terminal_plot()
    assert "<pre>" in result._repr_html_()


def test_html_of_a_sweep_without_points() -> None:
    assert len(parsed(make_result([], lr=None)).images) == 1


# Tables in terminals.


def test_long_reasons_are_wrapped_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("auto", "the loss has made half of its drop"), ("flat", "")]
    table = Table(("rule", "reason"), rows)
    assert table.text(0).splitlines()[1] == "auto  the loss has made half of its drop"
    assert table.text(32).splitlines() == [
        "rule  reason",
        "auto  the loss has made half of",
        "      its drop",
        "flat",
    ]
    assert table.text(12) != table.text(0) == table.text(11)  # the longest words need 12
    assert table.text() == table.text(0)  # pytest's stdout is no terminal
    monkeypatch.setattr("lrfast._utils.tables._terminal_width", lambda: 32)
    assert table.text() == table.text(32)
