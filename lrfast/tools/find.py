"""Range tests from the shell: on a user's training, or on a Hugging Face checkpoint with a file."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from lrfast._utils.optional import importing
from lrfast.optim import AdamW
from lrfast.range_test import RangeTest, lr_find

Made = tuple[Any, ...]


def call_target(target: str, lengths: tuple[int, ...], wanted: str) -> Made:
    """Return what a user's function returns, named ``script.py:function`` or ``module:function``.

    Args:
        target: The name; a module is found as ``python -m`` finds it.
        lengths: Numbers of entries that the returned tuple may have.
        wanted: These entries, in words.

    Raises:
        ValueError: If the name is of no function.
        TypeError: If the function returns something else.
    """
    place, _, name = target.rpartition(":")
    sys.path.insert(0, str(Path(place).resolve().parent) if place.endswith(".py") else "")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise ValueError(f"target must name a script that is there, got {target!r}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # for what the script pickles
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"target must name a function, got {target!r}")
    made = function()
    if not isinstance(made, tuple) or len(made) not in lengths:
        got = f"{len(made)} entries" if isinstance(made, tuple) else type(made).__name__
        raise TypeError(f"{target} must return {wanted}, got {got}")
    return made


def find(target: str, **options: Any) -> RangeTest:
    """Return a range test of what a user's function makes.

    Args:
        target: As for :func:`call_target`; the function takes nothing and returns ``(model,
            optimizer, train_loader)`` for a model that returns its loss, or these and ``loss_fn``.
        **options: Those of :func:`lrfast.lr_find`.
    """
    wanted = "(model, optimizer, train_loader) or (model, optimizer, train_loader, loss_fn)"
    made = call_target(target, (3, 4), wanted)
    return lr_find(*made, **options)


def find_for_checkpoint(
    checkpoint: str,
    data: Path,
    *,
    text: str = "text",
    label: str = "label",
    batch_size: int = 16,
    max_length: int = 128,
    **options: Any,
) -> RangeTest:
    """Return a range test of a Hugging Face checkpoint on a file of texts, with lrfast.AdamW.

    Texts with labels train a classifier, texts alone a causal language model.

    Args:
        checkpoint: Name or folder, as ``from_pretrained`` takes it.
        data: A .csv, .json, .jsonl or .txt file; a .txt has one text per line and no labels.
        text: Column of the texts (default "text").
        label: Column of the labels, classes of any name (default "label").
        batch_size: Texts per batch, 1 or more (default 16).
        max_length: Tokens per text at most, 1 or more (default 128).
        **options: Those of :func:`lrfast.lr_find`.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If the file holds no texts.
    """
    with importing("a checkpoint needs transformers", "transformers", extra="huggingface"):
        import transformers
    rows = list(read_rows(data, text))
    texts = [str(row[text]) for row in rows if row.get(text)]
    if not texts:
        raise ValueError(f"data must hold texts in a column {text!r}, got none in {data}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(texts, truncation=True, max_length=max_length)
    examples = [{"input_ids": ids} for ids in encoded["input_ids"]]
    if label in rows[0]:
        names = sorted({str(row[label]) for row in rows if row.get(text)})
        for example, row in zip(examples, (r for r in rows if r.get(text)), strict=True):
            example["labels"] = names.index(str(row[label]))
        kind = transformers.AutoModelForSequenceClassification
        model = kind.from_pretrained(checkpoint, num_labels=len(names))
        collate: Any = transformers.DataCollatorWithPadding(tokenizer)
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
        collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = AdamW(model.to(device).parameters(), weight_decay=0.01)
    loader: DataLoader[Any] = DataLoader(
        examples,  # type: ignore[arg-type]
        batch_size,
        shuffle=True,
        collate_fn=collate,
    )
    return lr_find(model, optimizer, loader, **options)


def read_rows(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .csv, .json, .jsonl or .txt file as dicts."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json", ".jsonl", ".txt"):
        raise ValueError(f"data must be a .csv, .json, .jsonl or .txt file, got {str(path)!r}")
    with path.open(newline="", encoding="utf-8") as file:
        if suffix == ".csv":
            yield from csv.DictReader(file)
        elif suffix == ".json":
            yield from json.load(file)
        else:
            lines = (line.strip() for line in file)
            read = json.loads if suffix == ".jsonl" else lambda line: {text: line}
            yield from (read(line) for line in lines if line)


def write(result: RangeTest, out: Path) -> list[Path]:
    """Write a range test to a folder: CSV, JSON, and a plot if matplotlib is installed."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"range_test.{suffix}" for suffix in ("csv", "json", "png")]
    result.to_csv(paths[0])
    result.to_json(paths[1])
    try:
        result.plot(paths[2])
    except ImportError:
        return paths[:2]
    return paths
