"""Builders of tiny model folders with the file names, key names and configurations that the released ones have."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet as DiffusersI2VGenXLUNet
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from conftest import TINY_UNET, seeded
from i2vgen.checkpoints.clip_keys import text_prefix_on_disk, text_table, vision_table
from i2vgen.checkpoints.configs import SOURCES
from i2vgen.checkpoints.tokenizer import clip_tokenizer
from i2vgen.checkpoints.unet_keys import unet_table
from i2vgen.checkpoints.vae_keys import vae_table
from i2vgen.models.unet import I2VGenXLUNet

UNET_FIELDS = {**TINY_UNET, "norm_num_groups": 32, "block_out_channels": (32, 32)}  # as unet_config reads them back
VAE_FIELDS = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
}
TOWER_FIELDS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "projection_dim": 32,
    "hidden_act": "gelu",
}
OPEN_CLIP_CONFIG = {  # in open_clip's own form
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "head_width": 8, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    }
}
SETTINGS = {"batch_size": 1, "target_fps": 8, "max_frames": 2, "latent_hei": 8, "latent_wid": 12}


def tiny_unet(source: str, seed: int = 4) -> I2VGenXLUNet:
    return seeded(lambda: I2VGenXLUNet(**UNET_FIELDS, **SOURCES[source]), seed)


def tiny_vae() -> AutoencoderKL:
    return seeded(lambda: AutoencoderKL(**VAE_FIELDS), 6)


def tiny_text_tower() -> CLIPTextModel:
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0}
    return seeded(lambda: CLIPTextModel(CLIPTextConfig(**TOWER_FIELDS, vocab_size=49408, **ids)), 1)


def tiny_image_tower() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(**TOWER_FIELDS, image_size=28, patch_size=14)
    return seeded(lambda: CLIPVisionModelWithProjection(config), 2)


def original_unet(unet: I2VGenXLUNet) -> dict[str, torch.Tensor]:
    """Its weights under the names of VGen and ModelScope."""
    state = unet.state_dict()
    return dict(unet_table(unet.config).convert_back(lambda key: state[key]))


def write_unet(path: Path, source: str) -> None:
    torch.save({"state_dict": original_unet(tiny_unet(source)), "step": 779000}, path)


def write_vae(path: Path) -> None:
    """As in a whole Stable Diffusion 2.1 checkpoint: the first stage among other things."""
    state = tiny_vae().state_dict()
    weights = dict(vae_table(VAE_FIELDS).with_prefix(source="first_stage_model.").convert_back(lambda key: state[key]))
    weights |= {"betas": torch.zeros(5), "model_ema.decay": torch.tensor(0.5)}
    weights |= {"model.diffusion_model.time_embed.0.weight": torch.zeros(4, 4)}
    weights |= {"cond_stage_model.model.ln_final.weight": torch.zeros(4)}
    torch.save({"state_dict": weights, "global_step": 110000}, path)


def write_open_clip(path: Path) -> None:
    text, image = tiny_text_tower().state_dict(), tiny_image_tower().state_dict()
    table = text_table(2).with_prefix(target=text_prefix_on_disk())
    weights = dict(table.convert_back(lambda key: text[key]))
    weights |= dict(vision_table(2).convert_back(lambda key: image[key]))
    weights |= {"text_projection": torch.zeros(32, 32), "logit_scale": torch.tensor(4.6)}
    torch.save(weights, path)
    (path.parent / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP_CONFIG))


def _write_shared(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_vae(folder / "v2-1_512-ema-pruned.ckpt")
    write_open_clip(folder / "open_clip_pytorch_model.bin")


def image2video_folder(folder: Path, **settings) -> Path:
    """ModelScope's damo/Image-to-Video, v1.1.0."""
    _write_shared(folder)
    write_unet(folder / "img2video_ldm_0779000.pth", "modelscope-image2video")
    _write_configuration(folder, "image-to-video", "img2video_ldm_0779000.pth", "image-to-video-task", {}, settings)
    return folder


def video2video_folder(folder: Path, solver_mode: str = "fast", **settings) -> Path:
    """ModelScope's damo/Video-to-Video, v1.1.0."""
    _write_shared(folder)
    write_unet(folder / "non_ema_0035000.pth", "modelscope-vid2vid")
    mode = {"solver_mode": solver_mode}
    sizes = {"latent_hei": 10, "latent_wid": 16, **settings}
    _write_configuration(folder, "video-to-video", "non_ema_0035000.pth", "video-to-video", mode, sizes)
    return folder


def _write_configuration(folder: Path, task: str, unet: str, pipeline: str, arguments: dict, settings: dict) -> None:
    files = {
        "ckpt_clip": "open_clip_pytorch_model.bin",
        "ckpt_unet": unet,
        "ckpt_autoencoder": "v2-1_512-ema-pruned.ckpt",
    }
    configuration = {
        "framework": "pytorch",
        "task": task,
        "model": {
            "type": f"{task}-model",
            "model_args": {**files, "seed": 666, **arguments},
            "model_cfg": {**SETTINGS, **settings},
        },
        "pipeline": {"type": f"{pipeline}-pipeline"},
    }
    (folder / "configuration.json").write_text(json.dumps(configuration, indent=4))


def vgen_folder(folder: Path) -> Path:
    """VGen's folder `models`, with base stage and refiner."""
    _write_shared(folder)
    write_unet(folder / "i2vgen_xl_00854500.pth", "vgen-i2vgen-xl")
    write_unet(folder / "sr_step_110000_ema.pth", "vgen-sr600")
    return folder


def hub_folder(folder: Path, max_shard_size: str | None = None) -> Path:
    """The hub's ali-vilab/i2vgen-xl, written by diffusers and transformers: plain and fp16 files."""
    side = 28
    towers = {"text_encoder": tiny_text_tower(), "image_encoder": tiny_image_tower()}
    parts = {
        "vae": tiny_vae(),
        **towers,
        "unet": seeded(lambda: DiffusersI2VGenXLUNet(**TINY_UNET), 7),
        "scheduler": DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            rescale_betas_zero_snr=True,
            set_alpha_to_one=True,
            clip_sample=False,
            steps_offset=1,
            timestep_spacing="leading",
            prediction_type="v_prediction",
        ),
        "tokenizer": clip_tokenizer(),
        "feature_extractor": CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
    }
    for name, part in parts.items():
        sharded = {"max_shard_size": max_shard_size} if name == "unet" and max_shard_size else {}
        part.save_pretrained(folder / name, **sharded)
        if isinstance(part, torch.nn.Module):
            part.half().save_pretrained(folder / name, variant="fp16", **sharded)
    index = {"_class_name": "I2VGenXLPipeline", "_diffusers_version": "0.26.0"}
    transformers_parts = (*towers, "tokenizer", "feature_extractor")
    for name, part in parts.items():
        index[name] = ["transformers" if name in transformers_parts else "diffusers", type(part).__name__]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]  # whatever transformers calls it today
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
