"""Foreign checkpoints: what they are, their key tables, reading, converting and writing."""

from i2vgen.checkpoints.errors import CheckpointError
from i2vgen.checkpoints.load import load_spatial, load_unet

__all__ = ["CheckpointError", "load_spatial", "load_unet"]
