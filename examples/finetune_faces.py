"""R-Net, pretrained to find faces, learns to find them upside down and in noise.

Its weights come with facenet-pytorch, the images with scikit-image. It knows the task and keeps its
head, but as the images are here it sees no face in any of them. Ten labels of each kind have to do.
Layer groups are the convolutions, the layer after them and the head.

    pip install --no-deps -r requirements/examples.txt
    python examples/finetune_faces.py
"""

from __future__ import annotations

from collections.abc import Sequence

from comparison import Plan, Run, compare, few_labels, plot
from faces import load_faces
from pretrained import RNet
from report import options, show, write
from rich.console import Console

TITLE = "R-Net: faces upside down and in noise"
STORY = """\
R-Net (100 thousand weights, pretrained to find faces) with its own head; 200 images of
lfw_subset, upside down and with noise (standard deviation 0.2 of the range), 10 labels per class to
train on, the other 180 to judge by.

One rate for all layers wins: noise changes what the first layers have to see, which the two stages
move least. The second stage's range test, on a network that fits its 20 images already, has little
left to show."""
LABELS = 10
NOISE = 0.2
PLAN = Plan(seeds=(0, 1, 2, 3, 4), steps=40, batch=10, points=100, repeats=3)
QUICK = Plan(seeds=(0,), steps=2, batch=4, points=20)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    console = Console()
    plan = QUICK if chosen.is_quick else PLAN

    def make_run(seed: int, way: str) -> Run:
        model = RNet()
        images, classes = load_faces(NOISE, seed)
        task = few_labels(images, classes, LABELS, len(classes), seed)
        return Run(model, model.children(), task, plan, seed, way)

    rows, runs = compare(make_run, plan, console=console)
    show(rows, TITLE, console)
    plots = plot(runs["two stages"], chosen.plots, "finetune_faces")
    if chosen.report is not None:
        write(chosen.report, TITLE, STORY, rows, plots)


if __name__ == "__main__":
    main()
