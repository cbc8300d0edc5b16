"""Trainings of a tiny BERT by Hugging Face's Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

STEPS = 16  # 64 rows in batches of 8, twice


def make_model() -> nn.Module:
    return make_bert(dropout=0.1)


def make_bert(dropout: float) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model


def make_data() -> list[dict[str, Any]]:
    tokens = torch.randint(0, 50, (64, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": (row[0] > 25).long()} for row in tokens]


def make_trainer(
    folder: Path, trainer_class: Any = None, dropout: float = 0.1, **options: Any
) -> Any:
    given = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 3e-3,
        "weight_decay": 0.1,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,
        "max_grad_norm": 0.5,
        "warmup_steps": 3,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "dataloader_pin_memory": False,
    }
    extra = {key: options.pop(key) for key in ("optimizers", "callbacks") if key in options}
    args = transformers.TrainingArguments(str(folder), **(given | options))
    cls = trainer_class or transformers.Trainer
    return cls(make_bert(dropout), args, train_dataset=make_data(), **extra)


def train(trainer: Any, **options: Any) -> Any:
    trainer.train(**options)
    return trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
