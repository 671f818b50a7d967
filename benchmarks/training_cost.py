"""What a training step of a recipe costs: arithmetic counted on the network itself, without memory for it.

`python benchmarks/training_cost.py recipes/xl/base.toml [...] [--flops 400e12] [--markdown FILE]`

Counted: multiply-adds of one forward and backward pass of the UNet (times two, as is usual), with gradient
checkpointing's second forward pass where the recipe has it. Computed from the shapes: weights, gradients, Adam's
moments and the average. Times are the count divided by `--flops`, what one device is taken to sustain: no measurement.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.train.config import TrainConfig, load_config

DEVICES = (1, 8, 64)
CONTEXT = 77  # text tokens
FORWARD_AND_BACKWARD, RECOMPUTED = 3, 4  # in units of one forward pass


def forward_flops(config: TrainConfig, num_frames: int, size: tuple[int, int]) -> float:
    """Of one clip of `size` (W, H) pixels."""
    with torch.device("meta"):
        unet = I2VGenXLUNet(**config.denoiser.model)
        has = unet.config
        height, width = size[1] // 8, size[0] // 8
        latents = torch.empty(1, has.in_channels, num_frames, height, width)
        given = {
            "encoder_hidden_states": torch.empty(1, CONTEXT, has.cross_attention_dim),
            "image_embeddings": torch.empty(1, has.cross_attention_dim) if has.use_image_embeddings else None,
            "image_latents": latents[:, :, :1] if has.use_image_latents else None,
            "fps": torch.full((1,), 8.0) if has.use_fps else None,
        }
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            conditions = unet.encode_conditions(num_frames, **given)
            unet(latents, torch.zeros(1), conditions=conditions)
    return counter.get_total_flops()


def mean_step_flops(config: TrainConfig) -> float:
    """Of an average step over all processes: lengths and buckets by their shares."""
    clips = config.data.clips
    weights = clips.frame_weights or [1.0] * len(clips.frame_choices)
    lengths = [(1, clips.image_share)]
    lengths += [
        (f, (1 - clips.image_share) * w / sum(weights)) for f, w in zip(clips.frame_choices, weights, strict=True)
    ]
    size = tuple(clips.buckets[0])
    passes = RECOMPUTED if config.run.gradient_checkpointing else FORWARD_AND_BACKWARD
    return passes * sum(share * clips.batch_size(f) * forward_flops(config, f, size) for f, share in lengths)


def state_bytes(config: TrainConfig) -> int:
    """float32 weights, gradients, two moments and the average; divided by the processes when they share (fsdp)."""
    with torch.device("meta"):
        unet = I2VGenXLUNet(**config.denoiser.model)
    return 5 * 4 * sum(p.numel() for p in unet.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--flops", type=float, default=400e12, help="a second that one device sustains in bfloat16")
    parser.add_argument("--markdown")
    arguments = parser.parse_args()
    head = ["recipe", "steps", "PFLOP a step", "state, GB"] + [f"days on {n}" for n in DEVICES]
    rows = [head, ["---"] * len(head)]
    for path in arguments.recipes:
        config = load_config(path)
        flops = mean_step_flops(config)
        days = [config.optim.num_steps * flops / arguments.flops / n / 86400 for n in DEVICES]
        name = f"{Path(path).parent.name}/{Path(path).stem}"
        row = [name, f"{config.optim.num_steps:,}", f"{flops / 1e15:.1f}", f"{state_bytes(config) / 1e9:.0f}"]
        rows.append([*row, *(f"{d:,.0f}" if d >= 10 else f"{d:.1f}" for d in days)])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
    print(table)
    if arguments.markdown:
        Path(arguments.markdown).write_text(table)


if __name__ == "__main__":
    main()
