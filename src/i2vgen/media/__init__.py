"""Images and videos in and out, resizing and cropping, settings inside files, contact sheets."""

from i2vgen.media.arrays import frames_to_tensor, frames_to_uint8
from i2vgen.media.geometry import (
    CLIP_MEAN,
    CLIP_STD,
    center_crop_wide,
    clip_crop,
    clip_input,
    fit_image,
    image_to_tensor,
    nearest_valid_size,
)
from i2vgen.media.images import load_image
from i2vgen.media.settings import read_settings
from i2vgen.media.sheets import contact_sheet
from i2vgen.media.sources import MediaError
from i2vgen.media.video import Video, load_video
from i2vgen.media.writers import check_writable, write_video

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "MediaError",
    "Video",
    "center_crop_wide",
    "check_writable",
    "clip_crop",
    "clip_input",
    "contact_sheet",
    "fit_image",
    "frames_to_tensor",
    "frames_to_uint8",
    "image_to_tensor",
    "load_image",
    "load_video",
    "nearest_valid_size",
    "read_settings",
    "write_video",
]
