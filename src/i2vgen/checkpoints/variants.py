"""The family's variants: the settings that each was released with.

Where the figures come from:

    i2vgen-xl    VGen, configs/i2vgen_xl_infer.yaml, configs/i2vgen_xl_train.yaml, tools/modules/config.py
    sr600        VGen, configs/sr600_infer.yaml, tools/inferences/inference_sr600_entrance.py
    image2video  ModelScope, models/multi_modal/image_to_video: utils/config.py, image_to_video_model.py
    vid2vid-xl   ModelScope, models/multi_modal/video_to_video: utils/config.py, video_to_video_model.py
    diffusers-video-to-video   diffusers, VideoToVideoSDPipeline: the defaults of its call
"""

from __future__ import annotations

from typing import Any

VGEN_NEGATIVE_PROMPT = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, "
    "disconnected limbs, Ugly faces, incomplete arms"
)
# The refiners of VGen and ModelScope share it, its odd comma included.
REFINER_NEGATIVE_PROMPT = (
    "worst quality, normal quality, low quality, low res, blurry, text, watermark, logo, banner, extra digits, "
    "cropped, jpeg artifacts, signature, username, error, sketch ,duplicate, ugly, monochrome, horror, geometry, "
    "mutation, disgusting"
)
SR600_POSITIVE_PROMPT = (
    "cinematic, High Contrast, highly detailed, Unreal Engine 5, no blur, full length ultra-wide angle shot a "
    "cinematic scene, taken using a Canon EOS R camera, hyper detailed photo - realistic maximum detail, 32k, "
    "Color Grading, portrait Photography, ultra HD, extreme meticulous detailing, skin pore detailing, hyper "
    "sharpness, perfect without deformations, 4k render"
)
VID2VID_POSITIVE_PROMPT = (
    "cinematic, High Contrast, highly detailed, unreal engine, taken using a Canon EOS R camera, hyper detailed "
    "photo - realistic maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, skin pore "
    "detailing, hyper sharpness, perfect without deformations, Unreal Engine 5, 4k render"
)

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "i2vgen-xl": (
        {
            "height": 704,
            "width": 1280,
            "num_frames": 16,
            "target_fps": 16,
            "num_inference_steps": 50,
            "guidance_scale": 9.0,
        },
        {"beta_schedule": "cosine", "rescale_betas_zero_snr": True},
    ),
    "image2video": (
        {
            "height": 256,
            "width": 448,
            "num_frames": 32,
            "target_fps": 8,
            "num_inference_steps": 50,
            "guidance_scale": 3.0,
            "offset_noise": 0.1,
        },
        {
            "beta_schedule": "linear_sd",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "rescale_betas_zero_snr": False,
        },
    ),
    "vid2vid-xl": (
        {
            "height": 720,
            "width": 1280,
            "num_inference_steps": 30,
            "refine_timestep": 599,
            "guidance_scale": 7.5,
            "guidance_rescale": 0.2,
            "negative_prompt": REFINER_NEGATIVE_PROMPT,
            "positive_prompt": VID2VID_POSITIVE_PROMPT,
        },
        {"solver": "dpmpp_2m_sde", "start_timestep": 599},
    ),
    "sr600": (
        {
            "height": 720,
            "width": 1280,
            "num_inference_steps": 30,
            "refine_timestep": 699,
            "inversion_steps": 30,
            "guidance_scale": 9.0,
            "guidance_rescale": 0.3,
            "negative_prompt": REFINER_NEGATIVE_PROMPT,
            "positive_prompt": SR600_POSITIVE_PROMPT,
        },
        {"solver": "dpmpp_2m_sde", "start_timestep": 699},
    ),
    "diffusers-video-to-video": (
        {
            "height": 576,
            "width": 1024,
            "num_inference_steps": 50,
            "refine_timestep": 599,
            "guidance_scale": 15.0,
            "guidance_rescale": 0.0,
            "clip_skip": 0,
        },
        {},
    ),
}


def variant_defaults(name: str, solver_mode: str = "fast") -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that the variant `name` was released with.

    Returns (defaults, fields): the `base_defaults` or `refine_defaults` of its folder, and the fields of its
    scheduler, an `I2VGenDDIMScheduler` for "i2vgen-xl" and "image2video", a `VideoRefineScheduler` for
    "vid2vid-xl" and "sr600", none for "diffusers-video-to-video", which keeps its own. `solver_mode` is that of
    vid2vid-xl's configuration.json: "fast" takes 30 steps of DPM-Solver++, any other 50 of Heun.

    Raises ValueError for a name that is not in `VARIANTS`.
    """
    if name not in VARIANTS:
        raise ValueError(f"variant {name!r} is unknown; use one of {', '.join(VARIANTS)}")
    defaults, fields = (dict(part) for part in VARIANTS[name])
    if name == "vid2vid-xl" and solver_mode != "fast":
        defaults["num_inference_steps"], fields["solver"] = 50, "heun"
    return defaults, fields
