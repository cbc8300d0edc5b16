"""Hugging Face's Trainer with its own AdamW, and with lrfast: the same weights, fewer waits.

A small BERT, made here, learns which half of the vocabulary a sentence's first token is from. With
--device cuda, add --half for float16.

    pip install "lrfast[huggingface]"
    python examples/integrations/huggingface_trainer.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import Waits, options, report
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from lrfast.integrations import huggingface

ROWS, LENGTH, TOKENS = 512, 16, 20


def make_data() -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(0, TOKENS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = tokens[:, 0] < TOKENS // 2
    return [{"input_ids": t, "labels": x} for t, x in zip(tokens, labels.long(), strict=True)]


def make_trainer(folder: str, chosen: Any) -> Trainer:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
    )
    arguments = TrainingArguments(
        folder,
        learning_rate=1e-3,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        max_steps=chosen.steps,
        per_device_train_batch_size=16,
        logging_nan_inf_filter=False,  # 2 waits per batch
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=chosen.device == "cpu",
        fp16=chosen.is_half,
    )
    return Trainer(BertForSequenceClassification(config), arguments, train_dataset=make_data())


def as_it_is(trainer: Trainer) -> None:
    """Trainer's own AdamW, scheduler and clipping."""


def with_lrfast(trainer: Trainer) -> None:
    """The two lines."""
    huggingface.use(trainer)
    trainer.add_callback(huggingface.LateLogs(trainer))


def train(prepare: Callable[[Trainer], None], folder: str, chosen: Any) -> tuple[Any, int]:
    trainer = make_trainer(folder, chosen)
    prepare(trainer)
    with Waits(chosen.device) as waits:
        trainer.train()
    return trainer.model, waits.count


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments, has_half=True)
    with tempfile.TemporaryDirectory() as folder:
        theirs, before = train(as_it_is, folder, chosen)
        ours, after = train(with_lrfast, folder, chosen)
        found = huggingface.lr_find(make_trainer(folder, chosen), num_iter=50).suggestion
    report(chosen.steps, (theirs, ours), (before, after), found)


if __name__ == "__main__":
    main()
