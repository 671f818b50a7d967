"""The examples that diffusers and ModelScope document, changed in the import line and the model path only."""

from __future__ import annotations

import shutil

import av
import numpy as np
import pytest
import torch
from PIL import Image

from model_folders import hub_folder, image2video_folder, video2video_folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Plain and fp16 files, the UNet in several shards."""
    folder = hub_folder(tmp_path_factory.mktemp("hub") / "ali-vilab" / "i2vgen-xl", max_shard_size="500KB")
    assert len(list((folder / "unet").glob("diffusion_pytorch_model-*.safetensors"))) > 1
    assert len(list((folder / "unet").glob("diffusion_pytorch_model.fp16-*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def damo(tmp_path_factory):
    """Where ModelScope's package keeps its downloads."""
    root = tmp_path_factory.mktemp("cache")
    image2video_folder(root / "hub" / "damo" / "Image-to-Video")
    video2video_folder(root / "hub" / "damo" / "Video-to-Video")
    return root


def video_of(path):
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), rate


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_diffusers_example(hub, variant, photo_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    repository, image_url, files = str(hub), str(photo_path), {} if variant is None else {"variant": variant}
    device = "cuda" if torch.cuda.is_available() else "cpu"

    from diffusers.utils import export_to_gif, load_image

    from i2vgen.pipelines import I2VGenXLPipeline

    pipeline = I2VGenXLPipeline.from_pretrained(repository, torch_dtype=torch.float16, **files).to(device)
    pipeline.enable_model_cpu_offload()

    image = load_image(image_url).convert("RGB").resize((64, 48))

    prompt = "Papers were floating in the air on a table in the library"
    negative_prompt = "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured"
    generator = torch.manual_seed(8888)

    frames = pipeline(
        prompt=prompt,
        image=image,
        num_inference_steps=1,
        negative_prompt=negative_prompt,
        guidance_scale=9.0,
        generator=generator,
        decode_chunk_size=1,
        height=48,  # the tiny model's own stand-in for 704 x 1280
        width=64,
    ).frames
    path = export_to_gif(frames[0], "i2v.gif")

    assert len(frames) == 1
    assert len(frames[0]) == 16
    with Image.open(path) as gif:
        assert gif.n_frames == 16
        assert gif.size == (64, 48)


def test_half_precision_is_loaded_as_asked(hub):
    from i2vgen.pipelines import I2VGenXLPipeline

    halves = I2VGenXLPipeline.from_pretrained(hub, torch_dtype=torch.float16, variant="fp16")
    plain = I2VGenXLPipeline.from_pretrained(hub)
    for name in ("unet", "vae", "text_encoder", "image_encoder"):
        half, full = getattr(halves, name).state_dict(), getattr(plain, name).state_dict()
        for key, value in full.items():
            assert half[key].dtype == (torch.float16 if value.is_floating_point() else value.dtype)
            assert torch.equal(half[key], value.to(half[key].dtype))


def test_a_folder_with_one_variant_alone_needs_no_word_of_it(hub, tmp_path):
    from i2vgen.pipelines import I2VGenXLPipeline

    shutil.copytree(hub, tmp_path / "hub")
    for file in (tmp_path / "hub").rglob("*.safetensors*"):
        if ".fp16" not in file.name:
            file.unlink()
    ours, theirs = (
        I2VGenXLPipeline.from_pretrained(folder, torch_dtype=torch.float16, variant=variant).unet.state_dict()
        for folder, variant in ((tmp_path / "hub", None), (hub, "fp16"))
    )
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_modelscope_image_to_video_example(damo, photo_path, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_CACHE", str(damo))
    monkeypatch.chdir(tmp_path)
    IMG_PATH = str(photo_path)

    from i2vgen.compat.modelscope import OutputKeys, pipeline

    pipe = pipeline(task='image-to-video', model='damo/Image-to-Video', model_revision='v1.1.0')  # fmt: skip
    output_video_path = pipe(IMG_PATH, output_video='./output.mp4')[OutputKeys.OUTPUT_VIDEO]  # fmt: skip

    assert output_video_path == "./output.mp4"
    frames, rate = video_of(output_video_path)
    assert frames.shape == (2, 16, 24, 3)  # max_frames, latent_hei and latent_wid of configuration.json
    assert rate == 8


@pytest.mark.filterwarnings("ignore")
def test_modelscope_example_with_two_pipelines(damo, photo_path, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MODELSCOPE_CACHE", str(damo))
    monkeypatch.chdir(tmp_path)

    from i2vgen.compat.modelscope import OutputKeys, pipeline

    # fmt: off
    pipe1 = pipeline(task="image-to-video", model='damo/Image-to-Video', model_revision='v1.1.0', device='cuda:0')
    pipe2 = pipeline(task="video-to-video", model='damo/Video-to-Video', model_revision='v1.1.0', device='cuda:0')
    # fmt: on
    video = pipe1(str(photo_path), output_video="./i2v_output.mp4")[OutputKeys.OUTPUT_VIDEO]
    p_input = {"video_path": video, "text": "A lighthouse in a storm"}
    with_text = pipe2(p_input, output_video="./v2v_output.mp4")[OutputKeys.OUTPUT_VIDEO]

    frames, rate = video_of(with_text)
    assert frames.shape == (2, 20, 32, 3)
    assert rate == 8
    if not torch.cuda.is_available():
        assert "no CUDA" in caplog.text
