"""What was released, as data: which files a folder of each kind has, what they hold, and where they are had from."""

from __future__ import annotations

from dataclasses import dataclass

VAE_FILE = "v2-1_512-ema-pruned.ckpt"
CLIP_FILE = "open_clip_pytorch_model.bin"
CLIP_CONFIG_FILE = "open_clip_config.json"  # open_clip's usual file; ViT-H-14's settings where there is none
MODELSCOPE_CONFIG_FILE = "configuration.json"


@dataclass(frozen=True)
class Released:
    """One released UNet.

    `source` is what `load_unet` calls its layout; `pattern` matches the file names it had, `file_name` being the
    last release's; `where` is where it is had from, "" where that is not known; `task` is its ModelScope task;
    `uses_text` and `uses_image` say which towers it needs.
    """

    name: str
    is_refiner: bool
    source: str
    pattern: str
    file_name: str
    where: str
    task: str = ""
    uses_text: bool = True
    uses_image: bool = True


RELEASED = {
    r.name: r
    for r in (
        Released(
            "i2vgen-xl",
            is_refiner=False,
            source="vgen-i2vgen-xl",
            pattern="i2vgen_xl_*.pth",
            file_name="i2vgen_xl_00854500.pth",
            where="ModelScope's damo/I2VGen-XL",
        ),
        Released(
            "sr600",
            is_refiner=True,
            source="vgen-sr600",
            pattern="sr_step_*.pth",
            file_name="sr_step_110000_ema.pth",
            where="",  # VGen's configuration names models/sr_step_110000_ema.pth, and no place
            uses_image=False,
        ),
        Released(
            "image2video",
            is_refiner=False,
            source="modelscope-image2video",
            pattern="img2video_ldm_*.pth",
            file_name="img2video_ldm_0779000.pth",
            where="ModelScope's damo/Image-to-Video, revision v1.1.0",
            task="image-to-video",
            uses_text=False,
        ),
        Released(
            "vid2vid-xl",
            is_refiner=True,
            source="modelscope-vid2vid",
            pattern="non_ema_0035000.pth",
            file_name="non_ema_0035000.pth",
            where="ModelScope's damo/Video-to-Video, revision v1.1.0",
            task="video-to-video",
            uses_image=False,
        ),
    )
}
TASKS = {r.task: r.name for r in RELEASED.values() if r.task}
