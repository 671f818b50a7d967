"""Assemble the shipped cascade from the runs: `python recipes/nano/export.py [--runs runs/nano] [--out DIR]`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from i2vgen.models.autoencoder import PatchAutoencoder
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.pipelines import CascadePipeline
from i2vgen.pipelines.loading import NANO_DIR
from i2vgen.schedulers import I2VGenDDIMScheduler, VideoRefineScheduler

DEFAULTS = json.loads((Path(__file__).parent / "defaults.json").read_text())


def prefix_text_keys(path: Path) -> None:
    """Name the text tower's tensors as transformers 4 does, which transformers 5 reads too, but not the reverse."""
    prefix = "text_model."
    tensors = {k if k.startswith(prefix) else prefix + k: v for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/nano"))
    parser.add_argument("--base", default="base", help="name of the base stage's run")
    parser.add_argument("--refine", default="refine", help="name of the refinement stage's run")
    parser.add_argument("--out", type=Path, default=NANO_DIR)
    arguments = parser.parse_args()
    vae = arguments.runs / "vae" / "export" / "vae"
    towers = arguments.runs / "towers" / "export"
    refine = arguments.runs / arguments.refine / "export" / "unet"
    cascade = CascadePipeline(
        vae=PatchAutoencoder.from_pretrained(vae).half(),
        text_encoder=CLIPTextModel.from_pretrained(towers / "text_encoder").half(),
        tokenizer=CLIPTokenizer.from_pretrained(towers / "tokenizer"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(towers / "image_encoder").half(),
        feature_extractor=CLIPImageProcessor.from_pretrained(towers / "feature_extractor"),
        unet=I2VGenXLUNet.from_pretrained(arguments.runs / arguments.base / "export" / "unet").half(),
        # the schedule is the original's; few steps ask for an even spread from pure noise down to clean
        scheduler=I2VGenDDIMScheduler(timestep_spacing="trailing", final_alpha_cumprod="one"),
        refine_unet=I2VGenXLUNet.from_pretrained(refine).half(),
        refine_scheduler=VideoRefineScheduler(**DEFAULTS["refine_scheduler"]),
        base_defaults=DEFAULTS["base"],
        refine_defaults=DEFAULTS["refine"],
    )
    cascade.save_pretrained(arguments.out, max_shard_size="15MB")
    # readable by transformers 4 as well as 5
    prefix_text_keys(arguments.out / "text_encoder" / "model.safetensors")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(arguments.runs / "towers" / "tokenizer" / name, arguments.out / "tokenizer" / name)
    for path in (arguments.out / "model_index.json", *(arguments.out / "feature_extractor").glob("*.json")):
        path.write_text(path.read_text().replace("CLIPImageProcessorPil", "CLIPImageProcessor"))
    size = sum(f.stat().st_size for f in arguments.out.rglob("*") if f.is_file())
    print(f"{arguments.out}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
