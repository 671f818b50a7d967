"""Replays of the numbers behind what we say of diffusers, with its own classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet as DiffusersI2VGenXLUNet

from i2vgen.models.conditioning import with_frame_planes
from i2vgen.parity.calls import ParityError, analytic_model, conditions, parse_calls
from i2vgen.parity.checks import Check, equal
from i2vgen.parity.golden import INDEX, Case, read_json, read_tensors
from i2vgen.parity.recipe import Networks
from i2vgen.schedulers import I2VGenDDIMScheduler, apply_guidance

UNET = "vgen_i2vgen_xl"
NOISE = 2e-5  # what rounding alone may make of any of these numbers, absolute
SHARE = 0.01  # and of those that measure a real difference, relative
FLOAT32_ROUNDING = 5e-7  # of diffusers' schedule, a running product in float32
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "v_prediction",
}


def diffusers_cases(folder: Path, networks: Networks) -> Iterator[Case]:
    """Cases whose inputs lie in a golden set that is not replayed now have nothing to compare with."""
    if (folder / "unet.json").is_file():
        for name, entry in read_json(folder / "unet.json").items():
            if isinstance(entry, dict):
                path = networks.find(f"tiny/{UNET}/{name}.safetensors")
                run = partial(_replay_unet, networks, path, entry) if path else list
                yield Case(folder.name, f"unet/{name}", (), run)
    if (folder / "scheduler.json").is_file():
        content = read_json(folder / "scheduler.json")
        yield Case(folder.name, "scheduler/alphas_cumprod", (), partial(_replay_alphas, content))
        for name, entry in content.items():
            if isinstance(entry, dict) and any("set_alpha_to_one" in key for key in entry):
                path = networks.find(f"samplers/{name}.safetensors")
                run = partial(_replay_scheduler, path, entry) if path else list
                yield Case(folder.name, f"scheduler/{name}", (), run)


def _replay_unet(networks: Networks, path: Path, entry: Mapping[str, Any]) -> list[Check]:
    recorded, ours = read_tensors(path), networks.unet(UNET)
    names = ("block_out_channels", "layers_per_block", "down_block_types", "up_block_types", "cross_attention_dim")
    fields = {name: ours.config[name] for name in (*names, "attention_head_dim", "in_channels", "out_channels")}
    theirs = DiffusersI2VGenXLUNet(sample_size=32, **fields).eval()
    theirs.load_state_dict(ours.state_dict())
    image = recorded["local_image"]
    given = {
        "sample": recorded["x"],
        "timestep": recorded["t"],
        "fps": recorded["fps"],
        "image_latents": with_frame_planes(
            image[:, :, None] if image.ndim == 4 else image[:, :, :1], recorded["x"].shape[2]
        ),
        "image_embeddings": recorded["image"][:, 0],
        "encoder_hidden_states": recorded["y"],
    }
    outputs = {"as_shipped": theirs(**given).sample}
    theirs.conv_in.weight[:, ours.config.in_channels :] *= 2
    outputs["image_latents_part_doubled"] = theirs(**given).sample
    checks = []
    for name, expected in entry.items():
        if name not in outputs:
            raise ParityError(f"{name!r} is not known; known: {', '.join(outputs)}")
        checks += _distances(name, outputs[name], recorded["output"], expected)
    return checks


def _replay_alphas(content: Mapping[str, Any]) -> list[Check]:
    ours, theirs = I2VGenDDIMScheduler().alphas_cumprod, DDIMScheduler(**SCHEDULER).alphas_cumprod.double()
    places = {"alphas_cumprod_first": 0, "alphas_cumprod_last": -1}
    checks = []
    for name, place in places.items():
        for who, value in (("original", ours[place]), ("diffusers", theirs[place])):
            checks.append(Check(f"{name} {who}", abs(value.item() - content[name][who]), FLOAT32_ROUNDING))
    largest = (ours - theirs).abs().max().item()
    checks.append(Check("alphas_cumprod", abs(largest - content["alphas_cumprod_max_abs_diff"]), FLOAT32_ROUNDING))
    return checks


def _replay_scheduler(path: Path, entry: Mapping[str, Any]) -> list[Check]:
    described = read_json(path.with_name(INDEX))[path.stem]
    recorded, model = read_tensors(path, described), analytic_model(described["model"])
    call = next(call for call in parse_calls(described["call"]) if call.method == "ddim_sample_loop")
    scale, fields = call.options["guide_scale"], [condition["y"] for condition in conditions(call)]
    times = recorded["t"][:, 0].tolist()
    checks = []
    for setting, expected in entry.items():
        scheduler = DDIMScheduler(**SCHEDULER, set_alpha_to_one="True" in setting)
        scheduler.set_timesteps(call.options["ddim_timesteps"])
        theirs, x = scheduler.timesteps.tolist(), recorded["x_T"]
        for t in theirs:
            before, outputs = x, [model(x, t, recorded[name]) for name in fields]
            v = outputs[0] if scale is None else apply_guidance(*outputs, scale)
            x = scheduler.step(v, t, x, eta=0.0).prev_sample
        computed = {
            "timesteps_equal": theirs == times,
            "n_original": len(times),
            "n_diffusers": len(theirs),
            "original_first_last": [times[0], times[-1]],
            "diffusers_first_last": [theirs[0], theirs[-1]],
        }
        for name, value in computed.items():
            checks.append(equal(f"{setting} {name}", [value], [expected[name]]))
        checks += _distances(setting, x, recorded["final"], expected, "final_")
        if "before_last_step_rel_l2" in expected:
            checks += _distances(setting, before, recorded["x"][-2], expected, "before_last_step_")
    return checks


def _distances(
    what: str, value: torch.Tensor, original: torch.Tensor, expected: Mapping[str, float], prefix: str = ""
) -> list[Check]:
    """Whether the distance of diffusers from the original is the recorded one."""
    difference = (value - original).double()
    computed = {
        "rel_l2": (difference.norm() / original.double().norm()).item(),
        "max_abs": difference.abs().max().item(),
    }
    checks = []
    for name, distance in computed.items():
        recorded = expected[prefix + name]
        checks.append(Check(f"{what} {prefix}{name}", abs(distance - recorded), NOISE + SHARE * recorded))
    return checks
