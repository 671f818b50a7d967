"""The recorded tiny models, as other tests take them: UNets with the recipe's weights, and their cases."""

from __future__ import annotations

from pathlib import Path

import torch

from i2vgen.checkpoints.configs import SOURCES
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.parity.golden import read_tensors
from i2vgen.parity.recipe import Networks, drawn_state

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = Networks([GOLDEN])
REFINER = SOURCES["modelscope-vid2vid"]


def golden_unet(name: str) -> I2VGenXLUNet:
    """Our UNet with the weights of the recorded model `name`; a new one each time."""
    return Networks([GOLDEN]).unet(name)


def golden_state(name: str) -> dict[str, torch.Tensor]:
    """Those weights under their original keys."""
    return drawn_state(NETWORKS.unet_shapes(name))


def golden_case(name: str, case: str) -> dict[str, torch.Tensor]:
    """Recorded inputs and output."""
    return read_tensors(GOLDEN / "tiny" / name / f"{case}.safetensors")
