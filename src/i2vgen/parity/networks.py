"""Replays of single networks: UNets, the VAE, the CLIP towers, and the fingerprints of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.parity.calls import ParityError
from i2vgen.parity.checks import Check, absolute, equal
from i2vgen.parity.golden import CONFIG, Case, broken, read_json, read_tensors, tensor
from i2vgen.parity.recipe import Networks, draw, fingerprint, kind_of
from i2vgen.pipelines.conditioning import encode_tokens

FORWARD_TOLERANCE = 2e-5  # absolute; outputs have a standard deviation of about 0.6
SUM_TOLERANCE = 1e-6  # relative, where the last bit of a rare weight differs from one machine to another


def unet_cases(folder: Path, networks: Networks) -> Iterator[Case]:
    """`tiny/<model>/`: every tensor file is a call of the model, with the arguments that it holds."""
    for model in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = {path.stem: path for path in model.glob("*.safetensors")}
        try:
            listed = read_json(model / CONFIG).get("cases", {})
        except ParityError as error:
            yield broken(folder.name, model.name, str(error), found.values())
            continue
        if not found and not listed:
            yield broken(folder.name, model.name, "the folder holds no cases")
        for name in sorted({*found, *listed}):
            path = model / f"{name}.safetensors"
            run = partial(_replay_unet, networks, model.name, path, listed.get(name))
            yield Case(folder.name, f"{model.name}/{name}", (path,), run)


def run_unet(unet: I2VGenXLUNet, x: torch.Tensor, t: torch.Tensor, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Our UNet called with the original's arguments: `y`, `image`, `local_image`, `fps`.

    Without a text head, as in the image-only base, `y` is the image embedding. Of `local_image`, (b c h w) or
    (b c f h w), the original reads frame 0 alone.
    """
    if not unet.config.use_image_embeddings:
        return unet(x, t, encoder_hidden_states=tensor(given, "y")).sample
    if not unet.config.use_image_latents:
        return unet(x, t, fps=tensor(given, "fps"), image_embeddings=tensor(given, "y")).sample
    image = tensor(given, "local_image")
    return unet(
        x,
        t,
        fps=tensor(given, "fps"),
        image_latents=image if image.ndim == 4 else image[:, :, 0],
        image_embeddings=given.get("image"),
        encoder_hidden_states=tensor(given, "y"),
    ).sample


def _replay_unet(networks: Networks, model: str, path: Path, entry: Mapping[str, Any] | None) -> list[Check]:
    recorded = read_tensors(path, entry)
    output = run_unet(networks.unet(model), tensor(recorded, "x"), tensor(recorded, "t"), recorded)
    return [absolute("output", output, tensor(recorded, "output"), FORWARD_TOLERANCE)]


def vae_cases(folder: Path, networks: Networks) -> Iterator[Case]:
    yield from _configured(folder, partial(_replay_vae, networks))


def _replay_vae(networks: Networks, path: Path, config: Mapping[str, Any]) -> list[Check]:
    recorded, vae = read_tensors(path), networks.vae()
    posterior = vae.encode(tensor(recorded, "image")).latent_dist
    latent = config["scale_factor"] * (posterior.mean + posterior.std * tensor(recorded, "noise"))
    computed = {
        "moments": posterior.parameters,
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "latent": latent,
        "decoded": vae.decode(tensor(recorded, "z")).sample,
    }
    return _outputs(computed, recorded, ("moments", "latent", "decoded"))


def clip_cases(folder: Path, networks: Networks) -> Iterator[Case]:
    yield from _configured(folder, partial(_replay_towers, networks))


def _replay_towers(networks: Networks, path: Path, _config: Mapping[str, Any]) -> list[Check]:
    recorded = read_tensors(path)
    text, projection, vision = networks.towers()
    tokens = tensor(recorded, "tokens")
    words = encode_tokens(text, tokens, clip_skip=1)
    ends = words[torch.arange(len(tokens)), tokens.argmax(dim=1)]
    computed = {
        "y_words": words,
        "y_words_last": encode_tokens(text, tokens, clip_skip=0),
        "y_text": ends @ projection,
        "image_embed": vision(tensor(recorded, "image")).image_embeds,
    }
    return _outputs(computed, recorded, ("y_words", "image_embed"))


def _configured(folder: Path, replay: Callable[[Path, Mapping[str, Any]], list[Check]]) -> Iterator[Case]:
    """Cases of a group whose config.json describes one network: those that it lists, and those that are there."""
    config = read_json(folder / CONFIG)
    found = {path.stem for path in folder.glob("*.safetensors")}
    for name in sorted({*found, *config.get("cases", {})}):
        path = folder / f"{name}.safetensors"
        yield Case(folder.name, name, (path,), partial(replay, path, config))


def _outputs(
    computed: Mapping[str, torch.Tensor], recorded: Mapping[str, torch.Tensor], needed: tuple[str, ...]
) -> list[Check]:
    for name in needed:
        tensor(recorded, name)
    names = [name for name in computed if name in recorded]
    return [absolute(name, computed[name], recorded[name], FORWARD_TOLERANCE) for name in names]


def recipe_cases(path: Path, networks: Networks) -> Iterator[Case]:
    """recipe_check.json: our keys and shapes, turned back into the original's, draw the recorded weights."""
    content, group = read_json(path), path.stem
    for name, expected in content.get("models", {}).items():
        yield Case(group, name, (), partial(_replay_model, networks, name, expected))
    if samples := content.get("samples"):
        yield Case(group, "samples", (), partial(_replay_samples, samples))


def _replay_model(networks: Networks, name: str, expected: Mapping[str, Any]) -> list[Check]:
    special = {"vae": networks.vae_shapes, "clip": networks.tower_shapes}
    shapes = special[name]() if name in special else networks.unet_shapes(name)
    ours = fingerprint(shapes)
    counts = ("keys", "elements")
    checks = [equal(field, [ours[field]], [expected[field]]) for field in counts if field in expected]
    kinds = expected.get("by_kind", {})
    checks.append(equal("by_kind", [ours["by_kind"].get(kind, 0) for kind in kinds], list(kinds.values())))
    if ours["weights_sha256"] != expected.get("weights_sha256"):
        for field in ("sum", "sum_of_squares"):
            error = abs(ours[field] / expected[field] - 1)
            checks.append(Check(field, error, SUM_TOLERANCE, "SHA-256 differs"))
    return checks


def _replay_samples(samples: Mapping[str, Any]) -> list[Check]:
    checks = []
    for described, expected in samples.items():
        key, _, shape = described.rpartition(" [")
        shapes = {key: tuple(int(side) for side in shape.rstrip("]").split(","))}
        if key.endswith(".bias"):  # of a norm if its weight has one dimension
            shapes[key[:-5] + ".weight"] = (1,) if expected["kind"] == "norm_bias" else (1, 1)
        checks.append(equal(key, [kind_of(key, shapes)], [expected["kind"]]))
        values = torch.from_numpy(draw(key, shapes)).flatten()
        checks.append(absolute(key, values[:4].double(), torch.tensor(expected["first4"], dtype=torch.float64), 1e-7))
    return checks
