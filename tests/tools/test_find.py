"""`lrfast find`: a range test of a script's training, or of a checkpoint, from the shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from trainers import load

import lrfast
from lrfast import cli
from lrfast.tools.find import find, find_for_checkpoint, read_rows

ROOT = Path(__file__).parents[2]
SCRIPT = """
import torch

def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    inputs = torch.randn(64, 4)
    data = torch.utils.data.TensorDataset(inputs, inputs[:, :3].argmax(1))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    loader = torch.utils.data.DataLoader(data, 8, shuffle=True)
    return model, optimizer, loader, torch.nn.functional.cross_entropy

def only_a_model():
    return torch.nn.Linear(2, 2)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


class Ended(NamedTuple):
    """What a command has left."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Ended]


@pytest.fixture
def lrfast_command(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command line beside a script, in this process: to start another one takes seconds."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lrfast", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, error = capsys.readouterr()
        if isinstance(code := ended.value.code, str):  # Python's own way to end with a message
            return Ended(1, out, f"{error}{code}\n")
        return Ended(code or 0, out, error)

    monkeypatch.chdir(script)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return run


def test_a_script_is_found_run_and_written(script: Path) -> None:
    command = [sys.executable, "-c", "from lrfast.cli import main; main()"]
    command += ["find", "script.py:make", "--num-iter", "40"]
    environment = os.environ | {"COLUMNS": "80", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Range test:" in done.stdout and "auto" in done.stdout and "▲" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    out = script / "lrfast-find"
    result = lrfast.RangeTest.from_json(out / "range_test.json")
    assert len((out / "range_test.csv").read_text().splitlines()) == len(result.lrs) + 1
    assert (out / "range_test.png").read_bytes().startswith(b"\x89PNG")
    assert str(out.name) in done.stdout


def test_it_is_the_range_test_that_python_makes(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(script), *sys.path])
    made: dict[str, Any] = {}
    exec(SCRIPT, made)
    expected = lrfast.lr_find(*made["make"](), num_iter=30, progress=False)
    for target in (f"{script}/script.py:make", "script:make"):
        found = find(target, num_iter=30, progress=False)
        assert found.losses.tolist() == expected.losses.tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["find", "somewhere"], "target must be script.py:make or module:make, or a checkpoint"),
        (["find", "script.py:nothing"], "target must name a function, got 'script.py:nothing'"),
        (["find", "other.py:make"], "target must name a script that is there"),
        (["find", "script.py:only_a_model"], "(model, optimizer, train_loader, loss_fn), got"),
        (["find", "x", "--data", "texts.parquet"], "data must be a .csv, .json, .jsonl or .txt"),
        (["find", "script.py:make", "--num-iter", "1"], "num_iter"),
        (
            ["bench", "mlp", "--device", "cuda"],
            "device must be one that torch has here, got 'cuda'",
        ),
        (["bench", "mlp", "--device", "gpu"], "device must be one that torch has here, got 'gpu'"),
        (["bench", "script.py:only_a_model"], "(model, optimizer), (model, optimizer, batch"),
        (["bench", "net"], "target must be mlp, cnn, transformer or module:function"),
    ],
)
def test_what_does_not_work_is_one_line(
    arguments: list[str], words: str, lrfast_command: Command
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = lrfast_command(*arguments)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"lrfast {arguments[0]}: ") and words in line
    assert done.stdout == ""


def test_the_version(lrfast_command: Command) -> None:
    done = lrfast_command("--version")
    assert done.stdout.startswith("lrfast 0.") and ", torch 2." in done.stdout
    assert done.returncode == 0


def test_help(lrfast_command: Command) -> None:
    for done in (lrfast_command("--help"), lrfast_command()):
        # Without arguments click sends the help to stderr, from some version on.
        text = done.stdout + done.stderr
        assert "Usage" in text and "Find, schedule and apply learning rates" in text
        assert all(command in text for command in ("find", "demo", "bench", "doctor"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random checkpoints, a classifier's and a language model's, with their tokenizer."""
    transformers = load("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("checkpoints")
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "good", "bad", "film"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    )
    size = {"vocab_size": 5, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(**size, intermediate_size=16)
    transformers.BertForSequenceClassification(bert).save_pretrained(folder / "classifier")
    gpt = transformers.GPT2Config(vocab_size=5, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    transformers.GPT2LMHeadModel(gpt).save_pretrained(folder / "language")
    for name in ("classifier", "language"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_a_checkpoint_is_tested_on_a_file_of_texts(
    suffix: str, checkpoints: Path, tmp_path: Path
) -> None:
    rows = [{"text": f"{word} film", "label": word} for word in ("good", "bad") * 12]
    path = tmp_path / f"texts.{suffix}"
    lines = {
        "csv": ["text,label", *(f"{row['text']},{row['label']}" for row in rows)],
        "jsonl": [json.dumps(row) for row in rows],
        "txt": [row["text"] for row in rows],
    }[suffix]
    path.write_text("\n".join(lines))
    assert [row["text"] for row in read_rows(path, "text")] == [row["text"] for row in rows]
    name = "language" if suffix == "txt" else "classifier"
    options: dict[str, Any] = {"num_iter": 12, "batch_size": 4, "progress": False, "end_lr": 1.0}
    result = find_for_checkpoint(str(checkpoints / name), path, **options)
    assert len(result.lrs) > 5
    # Two classes, or words of a vocabulary of five.
    assert result.losses[0] == pytest.approx(0.69 if name == "classifier" else 1.61, abs=0.5)


def test_a_file_without_texts(checkpoints: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("review,label\ngood film,1\n")
    with pytest.raises(ValueError, match="data must hold texts in a column 'text', got none in"):
        find_for_checkpoint(str(checkpoints / "classifier"), path)
