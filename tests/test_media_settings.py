"""Settings kept inside every kind of file."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from i2vgen.media import MediaError, read_settings, write_video
from i2vgen.media.settings import MAX_SETTINGS_BYTES, SETTINGS_PREFIX, SETTINGS_TAG, encode_settings

SUFFIXES = [".mp4", ".webm", ".gif", ".webp", "", ".png", "_%03d.png"]
SETTINGS = {
    "prompt": "a \"quoted\" 'line'\nand another\twith a tab; key=value # \\ end\u2028 \u0000",
    "negative_prompt": "ñandú 漢字 🎉 \ud800",
    "seed": 2**60,
    "guidance_scale": 7.5,
    "options": {"use_x": True, "none": None, "list": [1, 2.5, "three"]},
}


def frames(num_frames=2):
    return np.full((num_frames, 16, 16, 3), 100, np.uint8) + np.arange(num_frames, dtype=np.uint8)[:, None, None, None]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("num_frames", [1, 2])
def test_settings_survive_every_format(suffix, num_frames, tmp_path):
    path = write_video(tmp_path / f"v{suffix}", frames(num_frames), 8, SETTINGS)
    assert read_settings(path) == SETTINGS
    assert read_settings(tmp_path / f"v{suffix}") == SETTINGS


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_largest_settings_fit_every_format(suffix, tmp_path):
    largest = {"prompt": "x" * (MAX_SETTINGS_BYTES - len('{"prompt": ""}'))}
    assert read_settings(write_video(tmp_path / f"v{suffix}", frames(), 8, largest)) == largest
    largest["prompt"] += "x"
    with pytest.raises(MediaError, match="settings takes 65537 bytes, more than 65536"):
        write_video(tmp_path / f"w{suffix}", frames(), 8, largest)
    assert not list(tmp_path.glob("w*"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_settings_says_so(suffix, tmp_path):
    path = write_video(tmp_path / f"v{suffix}", frames(), 8)
    with pytest.raises(MediaError, match="no i2vgen settings"):
        read_settings(path)


def test_the_first_frame_of_a_folder_has_them_too(tmp_path):
    folder = write_video(tmp_path / "v", frames(), 8, SETTINGS)
    assert read_settings(folder / "frame_0000.png") == SETTINGS
    (folder / "settings.json").unlink()
    assert read_settings(folder) == SETTINGS
    with pytest.raises(MediaError, match="no i2vgen settings"):
        read_settings(folder / "frame_0001.png")


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_comments_of_other_programs_are_not_settings(suffix, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = '{"prompt": "foreign"}'
    extra = {"comment": b'{"prompt": "foreign"}'} if suffix == ".gif" else {"exif": exif}
    Image.new("RGB", (4, 4)).save(tmp_path / f"a{suffix}", **extra)
    with pytest.raises(MediaError, match="no i2vgen settings"):
        read_settings(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    "text, words",
    [
        ("{broken", "not valid JSON"),
        ('["list"]', "a list, not a dict"),
        ("[" * 60000, "not valid JSON"),
        ("x" * (MAX_SETTINGS_BYTES + 1), "more than 65536"),
    ],
)
def test_altered_settings_are_refused(text, words, tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(SETTINGS_TAG, text)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=chunks)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.gif", comment=(SETTINGS_PREFIX + text).encode())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "settings.json").write_text(text)
    for source in ("a.png", "a.gif", "folder"):
        with pytest.raises(MediaError, match=words):
            read_settings(tmp_path / source)


def test_unreadable_sources(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for source, words in [
        ("none.mp4", "does not exist"),
        ("text.mp4", "not a video"),
        (".", "is a directory"),
    ]:
        with pytest.raises(MediaError, match=words):
            read_settings(tmp_path / source)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"path": object()}, r"settings\['path'\].*JSON"),
        ({"scale": float("nan")}, r"settings\['scale'\]"),
        ({3: "x"}, "settings key 3"),
        (["x"], "settings is a list"),
    ],
)
def test_settings_that_json_cannot_hold(settings, words):
    with pytest.raises(MediaError, match=words):
        encode_settings(settings)
