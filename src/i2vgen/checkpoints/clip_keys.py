"""Key tables of open_clip's towers -> transformers' CLIPTextModel and CLIPVisionModelWithProjection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from i2vgen.checkpoints.tables import Entry, KeyTable, leaves

LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
TEXT_NORM = {"final_layer_norm": "ln_final"}
TEXT_EMBEDDINGS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
}
TEXT_UNUSED = ("text_projection", "logit_scale")  # of the contrastive loss alone
VISION_NORMS = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}
VISION_EMBEDDINGS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
}
VISION_PREFIX = "visual."  # of the image tower in a whole open_clip checkpoint; the text tower has none
TEXT_PREFIX_4 = "text_model."  # of CLIPTextModel's keys before transformers 5, which still reads them


def text_table(num_layers: int) -> KeyTable:
    """open_clip's text tower -> CLIPTextModel, with the names of transformers 5; see `text_prefix_on_disk`."""
    entries = [Entry(target, source) for target, source in TEXT_EMBEDDINGS.items()]
    entries += leaves(TEXT_NORM, "", "")
    entries += _layers(num_layers, "", "")
    return KeyTable("open_clip text tower", entries, TEXT_UNUSED)


def vision_table(num_layers: int) -> KeyTable:
    """open_clip's image tower, keys that start with "visual.", -> CLIPVisionModelWithProjection."""
    target = "vision_model."
    entries = [Entry(target + ours, VISION_PREFIX + theirs) for ours, theirs in VISION_EMBEDDINGS.items()]
    entries.append(Entry("visual_projection.weight", f"{VISION_PREFIX}proj", is_transposed=True))
    entries += leaves(VISION_NORMS, target, VISION_PREFIX)
    entries += _layers(num_layers, target, VISION_PREFIX)
    return KeyTable("open_clip image tower", entries)


def split_towers(keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """Keys of a whole open_clip checkpoint -> those of its text tower, those of its image tower."""
    keys = list(keys)
    return [k for k in keys if not k.startswith(VISION_PREFIX)], [k for k in keys if k.startswith(VISION_PREFIX)]


def text_prefix_on_disk() -> str:
    """What the installed transformers puts before the keys of `text_table` in a CLIPTextModel's file."""
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=0))
    key = next(iter(TEXT_EMBEDDINGS))
    return next(name for name in model.state_dict() if name.endswith(key)).removesuffix(key)


def _layers(num_layers: int, target: str, source: str) -> Iterator[Entry]:
    for index in range(num_layers):
        ours, theirs = f"{target}encoder.layers.{index}.", f"{source}transformer.resblocks.{index}."
        yield from leaves(LAYER, ours, theirs)
        for part, x in enumerate("qkv"):
            for kind in ("weight", "bias"):
                fused = f"{theirs}attn.in_proj_{kind}"
                yield Entry(f"{ours}self_attn.{x}_proj.{kind}", fused, part, parts=3)
