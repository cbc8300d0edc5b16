"""The automatic cut on the module trees of torchvision, timm and transformers, rebuilt in small.

Only names, nesting and what repeats are theirs; a tensor's size matters where it says which part
of a module holds most of its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from lrfast.groups import layer_groups


@cache
def kind(name: str, base: type[nn.Module] = nn.Module) -> type[nn.Module]:
    return type(name, (base,), {})


def module(class_name: str, /, **children: Any) -> Any:
    """A module of a class of its own, with children in the order given; modules only in effect."""
    made = kind(class_name)()
    for name, child in children.items():
        setattr(made, name, child)
    return made


def weight(size: int = 4) -> nn.Linear:
    return nn.Linear(size, size)


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(4)


def own(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


def repeat(count: int, make: Callable[[], nn.Module], container: Any = nn.ModuleList) -> Any:
    made = [make() for _ in range(count)]
    return container(made) if container is nn.ModuleList else container(*made)


def unit() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU())


def basic_block() -> Any:
    parts = {"conv1": weight(), "bn1": norm(), "conv2": weight(), "bn2": norm()}
    return module("BasicBlock", **parts, downsample=nn.Sequential(weight(), norm()))


def inverted_residual() -> Any:
    """Units of one class in a row, which are no layers of their own."""
    return module("InvertedResidual", block=nn.Sequential(unit(), unit(), unit()))


def attention_block() -> Any:
    heads = repeat(3, lambda: module("Head", key=nn.Linear(4, 1), query=nn.Linear(4, 1)))
    attention = module("Attention", heads=heads, proj=weight())
    mlp = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4))
    return module("Block", norm1=norm(), attn=attention, norm2=norm(), mlp=mlp)


def expert_block() -> Any:
    experts = repeat(4, lambda: module("Expert", w1=weight(), w2=weight()))
    return module("MoeBlock", attn=weight(), moe=module("Moe", gate=weight(), experts=experts))


def t5_block(cross: bool) -> Any:
    parts = ["SelfAttention", *(["CrossAttention"] if cross else []), "FeedForward"]
    return module(
        "T5Block", layer=nn.ModuleList([module(p, a=weight(), b=weight()) for p in parts])
    )


def torchvision_resnet() -> Any:
    stages = {f"layer{i}": repeat(2, basic_block, nn.Sequential) for i in (1, 2)}
    return module("ResNet", conv1=weight(), bn1=norm(), **stages, fc=weight())


def torchvision_vit() -> Any:
    layers = nn.Sequential()
    for index in range(2):
        layers.add_module(f"encoder_layer_{index}", attention_block())
    encoder = module("Encoder", pos_embedding=own(3), layers=layers, ln=norm())
    heads = nn.Sequential()
    heads.add_module("head", weight())
    return module("ViT", class_token=own(1), conv_proj=weight(), encoder=encoder, heads=heads)


def torchvision_efficientnet() -> Any:
    features = nn.Sequential(
        unit(), nn.Sequential(inverted_residual()), repeat(2, inverted_residual, nn.Sequential)
    )
    return module(
        "EfficientNet", features=features, classifier=nn.Sequential(nn.Dropout(), weight())
    )


def torchvision_mobilenet() -> Any:
    features = nn.Sequential(unit(), inverted_residual(), inverted_residual(), unit())
    classifier = nn.Sequential(weight(), nn.ReLU(), weight())
    return module("MobileNet", features=features, classifier=classifier)


def torchvision_convnext() -> Any:
    stage = lambda: repeat(2, attention_block, nn.Sequential)  # noqa: E731
    features = nn.Sequential(unit(), stage(), nn.Sequential(norm(), weight()), stage())
    return module("ConvNeXt", features=features, classifier=nn.Sequential(norm(), weight()))


def timm_convnext() -> Any:
    def stage(down: bool) -> Any:
        downsample = nn.Sequential(norm(), weight()) if down else nn.Identity()
        blocks = repeat(2, attention_block, nn.Sequential)
        return module("Stage", downsample=downsample, blocks=blocks)

    stages = nn.Sequential(stage(False), stage(True))
    head = module("NormMlpClassifierHead", norm=norm(), fc=weight())
    return module("ConvNeXt", stem=nn.Sequential(weight(), norm()), stages=stages, head=head)


def timm_vit() -> Any:
    patches = module("PatchEmbed", proj=weight(), norm=nn.Identity())
    blocks = repeat(2, attention_block, nn.Sequential)
    return module(
        "ViT",
        patch_embed=patches,
        cls_token=own(1),
        pos_embed=own(3),
        blocks=blocks,
        norm=norm(),
        head=weight(),
        head_dist=weight(),
    )


def timm_efficientnet() -> Any:
    def norm_act() -> nn.Module:
        made = kind("BatchNormAct2d", nn.BatchNorm2d)(4)  # type: ignore[call-arg]
        made.act = nn.ReLU()  # type: ignore[assignment]
        return made

    stages = nn.Sequential(*(repeat(n, inverted_residual, nn.Sequential) for n in (1, 2)))
    parts = {"conv_stem": weight(), "bn1": norm_act(), "blocks": stages, "conv_head": weight()}
    return module("EfficientNet", **parts, bn2=norm_act(), classifier=weight())


def bert_body(layers: int = 3, *, pooler: bool = True) -> Any:
    table = nn.Embedding(500, 4)  # far larger than the layers
    return module(
        "BertModel",
        embeddings=module("Embeddings", word_embeddings=table, LayerNorm=norm()),
        encoder=module("BertEncoder", layer=repeat(layers, attention_block)),
        **({"pooler": module("Pooler", dense=weight())} if pooler else {}),
    )


def gpt2(with_head: str, tie: bool) -> Any:
    body = module(
        "GPT2Model",
        wte=nn.Embedding(5, 4),
        wpe=nn.Embedding(6, 4),
        h=repeat(2, attention_block),
        ln_f=norm(),
    )
    head = nn.Linear(4, 5, bias=False)
    if tie:
        head.weight = body.wte.weight
    return module("GPT2", transformer=body, **{with_head: head})


def t5() -> Any:
    shared = nn.Embedding(500, 4)

    def stack(cross: bool) -> Any:
        blocks = nn.ModuleList([t5_block(cross) for _ in range(2)])
        return module("T5Stack", embed_tokens=shared, block=blocks, final_layer_norm=norm())

    head = nn.Linear(4, 500, bias=False)
    head.weight = shared.weight
    return module("T5", shared=shared, encoder=stack(False), decoder=stack(True), lm_head=head)


def bart() -> Any:
    shared = nn.Embedding(5, 4)

    def coder(name: str) -> Any:
        return module(
            name,
            embed_tokens=shared,
            embed_positions=nn.Embedding(6, 4),
            layers=repeat(2, attention_block),
            layernorm_embedding=norm(),  # registered late, runs early
        )

    body = module("BartModel", shared=shared, encoder=coder("Encoder"), decoder=coder("Decoder"))
    return module("Bart", model=body, classification_head=module("Head", a=weight(), b=weight()))


def opt() -> Any:
    decoder = module(
        "OPTDecoder",
        embed_tokens=nn.Embedding(5, 4),
        embed_positions=nn.Embedding(6, 4),
        final_layer_norm=norm(),  # registered early, runs last
        layers=repeat(2, attention_block),
    )
    return module("OPT", model=module("OPTModel", decoder=decoder))


def classifier_first() -> Any:
    return module("Custom", classifier=weight(), bert=bert_body(), aux=weight())


def table_last() -> Any:
    return module("Custom", layers=repeat(2, attention_block), tokens=nn.Embedding(5, 4))


def face_net() -> Any:
    """Its embedding is the last layer and no table; its fc is the first one."""
    return module("Face", fc=weight(), body=weight(), embedding=weight())


def stages_of(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: module("M", stem=weight(), layers=repeat(2, make), out=weight())


TREES: list[tuple[Callable[[], Any], str]] = [
    (torchvision_resnet, "conv1 layer1.0 layer1.1 layer2.0 layer2.1 fc"),
    (
        torchvision_vit,
        "conv_proj encoder.layers.encoder_layer_0 encoder.layers.encoder_layer_1 heads.head",
    ),
    (torchvision_efficientnet, "features.0.0 features.1.0 features.2.0 features.2.1 classifier.1"),
    (
        torchvision_mobilenet,
        "features.0.0 features.1 features.2 features.3.0 classifier.0 classifier.2",
    ),
    (
        torchvision_convnext,
        "features.0.0 features.1.0 features.1.1 features.2.1 features.3.0 features.3.1 "
        "classifier.1",
    ),
    (
        timm_convnext,
        "stem.0 stages.0.blocks.0 stages.0.blocks.1 stages.1.downsample.1 stages.1.blocks.0 "
        "stages.1.blocks.1 head",
    ),
    (timm_vit, "patch_embed blocks.0 blocks.1 head"),
    (timm_efficientnet, "conv_stem blocks.0.0 blocks.1.0 blocks.1.1 conv_head classifier"),
    (bert_body, "embeddings encoder.layer.0 encoder.layer.1 encoder.layer.2 pooler"),
    (lambda: bert_body(1, pooler=False), "embeddings encoder.layer.0"),
    (
        lambda: module("Cls", bert=bert_body(2), classifier=weight()),
        "bert.embeddings bert.encoder.layer.0 bert.encoder.layer.1 bert.pooler classifier",
    ),
    (
        lambda: module("Siamese", query=bert_body(2, pooler=False), context=bert_body(1)),
        "query.embeddings query.encoder.layer.0 query.encoder.layer.1 context.embeddings "
        "context.encoder.layer.0 context.pooler",
    ),
    (lambda: gpt2("lm_head", True), "transformer.wte transformer.h.0 transformer.h.1"),
    (lambda: gpt2("lm_head", False), "transformer.wte transformer.h.0 transformer.h.1 lm_head"),
    (t5, "shared encoder.block.0 encoder.block.1 decoder.block.0 decoder.block.1"),
    (
        bart,
        "model.shared model.encoder.layers.0 model.encoder.layers.1 model.decoder.embed_positions "
        "model.decoder.layers.0 model.decoder.layers.1 classification_head",
    ),
    (opt, "model.decoder.embed_tokens model.decoder.layers.0 model.decoder.layers.1"),
    (
        classifier_first,
        "bert.embeddings bert.encoder.layer.0 bert.encoder.layer.1 bert.encoder.layer.2 "
        "bert.pooler aux classifier",
    ),
    (table_last, "tokens layers.0 layers.1"),
    (face_net, "fc body embedding"),
    (stages_of(attention_block), "stem layers.0 layers.1 out"),
    (stages_of(expert_block), "stem layers.0 layers.1 out"),
    (stages_of(lambda: t5_block(True)), "stem layers.0 layers.1 out"),
    (
        lambda: module("M", layers=repeat(2, expert_block, nn.Sequential), out=weight()),
        "layers.0 layers.1 out",
    ),
    (lambda: module("M", layers=repeat(1, expert_block), out=weight()), "layers.0 out"),
    (lambda: module("M", lm=weight(), lm_head=weight()), "lm lm_head"),
    (lambda: module("M", a=weight(), classifier=weight(), score=weight()), "a classifier score"),
    (
        lambda: nn.Sequential(torchvision_resnet(), weight()),
        "0.conv1 0.layer1.0 0.layer1.1 0.layer2.0 0.layer2.1 0.fc 1",
    ),
    (
        lambda: module("Net", block1=attention_block(), block2=attention_block(), fc=weight()),
        "block1 block2 fc",
    ),
]


@pytest.mark.parametrize(("build", "names"), TREES, ids=lambda row: getattr(row, "__name__", ""))
def test_cut(build: Callable[[], Any], names: str) -> None:
    model = build()
    found = layer_groups(model)
    assert [group.name for group in found] == names.split()
    held = [p for group in found for p in group.parameters]
    assert len(held) == len(set(held))
    assert set(held) == set(model.parameters())
    assert found.unassigned == []


def members(model: Any, name: str) -> tuple[str, ...]:
    (group,) = [group for group in layer_groups(model) if group.name == name]
    return group.names


def test_norms_and_embeddings_go_where_they_run() -> None:
    assert members(gpt2("lm_head", True), "transformer.wte") == (
        "transformer.wte.weight",
        "transformer.wpe.weight",
    )
    assert "transformer.ln_f.weight" in members(gpt2("lm_head", True), "transformer.h.1")
    assert "model.decoder.final_layer_norm.bias" in members(opt(), "model.decoder.layers.1")
    assert members(bart(), "model.shared") == (
        "model.shared.weight",
        "model.encoder.embed_positions.weight",
        "model.encoder.layernorm_embedding.weight",
        "model.encoder.layernorm_embedding.bias",
    )
    # Tied to the first group; what is left of the group goes by the name of what it holds.
    assert members(bart(), "model.decoder.embed_positions") == (
        "model.decoder.embed_positions.weight",
        "model.decoder.layernorm_embedding.weight",
        "model.decoder.layernorm_embedding.bias",
    )
    assert "encoder.ln.weight" in members(torchvision_vit(), "encoder.layers.encoder_layer_1")
    assert "bn2.weight" in members(timm_efficientnet(), "conv_head")
    assert members(timm_vit(), "patch_embed")[:2] == ("cls_token", "pos_embed")
    assert "head_dist.weight" in members(timm_vit(), "head")


def test_tied_until_tells_the_last_group_that_holds_a_tied_parameter() -> None:
    model = t5()
    found = layer_groups(model)
    # lm_head has no group of its own and counts to the last one.
    assert {id(p): last for p, last in found.tied_until.items()} == {id(model.shared.weight): 4}
    assert found.tied == [
        (
            *("shared.weight", "encoder.embed_tokens.weight"),
            *("decoder.embed_tokens.weight", "lm_head.weight"),
        )
    ]
    assert layer_groups(gpt2("lm_head", False)).tied_until == {}
    twins = module("M", a=nn.Linear(4, 4), b=nn.Linear(4, 4, bias=False), head=weight())
    twins.b.weight = twins.a.weight  # b counts to the group that holds them both
    assert layer_groups(twins).tied_until == {}
    model = nn.Sequential(weight(), weight())  # held twice under one name is not tied
    overlapping = layer_groups(model, [[model[0], model[1].weight], model[1]])
    assert overlapping.duplicates == ["1.weight"] and overlapping.tied_until == {}


def test_order_within_a_container_is_the_order_it_runs_in() -> None:
    model = nn.Sequential()
    for name in ("head", "layers", "tokens"):
        model.add_module(name, nn.Embedding(3, 4) if name == "tokens" else weight())
    assert [group.name for group in layer_groups(model)] == ["head", "layers", "tokens"]
