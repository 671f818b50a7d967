"""Still pictures of every kind a user may give, good and bad."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from i2vgen.media import MediaError, load_image, sources


def ramp(height=24, width=32):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 7, y * 10, (x + y) * 4], -1).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header_of(width, height):
    """A PNG that says it is width x height and holds one row of nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


def jpeg_header_of(width, height, **options):
    """A small JPEG whose frame header says width x height."""
    data = bytearray(encoded(Image.fromarray(ramp()), "JPEG", **options))
    frame = data.find(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "file", "data url", "pil", "array", "tensor"])
def test_every_source_gives_the_same_pixels(kind, tmp_path):
    pixels = ramp()
    image = Image.fromarray(pixels)
    path = tmp_path / "a.png"
    image.save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    source = {
        "path": path,
        "str": str(path),
        "bytes": path.read_bytes(),
        "file": io.BytesIO(path.read_bytes()),
        "data url": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
        "pil": image,
        "array": pixels,
        "tensor": tensor[None],
    }[kind]
    loaded = load_image(source)
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(loaded, pixels)


def test_tensor_with_negatives_is_read_as_minus_one_to_one():
    pixels = ramp()
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    np.testing.assert_array_equal(load_image(tensor), pixels)
    np.testing.assert_array_equal(load_image(tensor.half().float()), load_image(tensor.half()))


@pytest.mark.parametrize(
    "dtype, scale", [(np.uint8, 1), (np.uint16, 257), (np.float32, 1 / 255), (np.float64, 1 / 255)]
)
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_array_dtypes_and_channels(dtype, scale, channels):
    pixels = ramp()[..., 0] if channels is None else np.repeat(ramp()[..., :1], channels, -1)
    if channels == 4:
        pixels[..., 3] = 255
    loaded = np.asarray(load_image((pixels * np.float64(scale)).astype(dtype)))
    np.testing.assert_array_equal(loaded, np.repeat(ramp()[..., :1], 3, -1))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # Shown after a quarter turn clockwise.
    data = encoded(Image.fromarray(ramp()), "PNG", exif=exif)
    np.testing.assert_array_equal(load_image(data), np.rot90(ramp(), -1))


def test_transparency_is_laid_on_white():
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :3] = (200, 0, 0, 255)
    rgba[:, 3:] = (200, 0, 0, 0)
    expected = np.full((4, 6, 3), 255, np.uint8)
    expected[:, :3] = (200, 0, 0)
    np.testing.assert_array_equal(load_image(rgba), expected)
    np.testing.assert_array_equal(load_image(encoded(Image.fromarray(rgba), "PNG")), expected)
    half = load_image(Image.new("LA", (2, 2), (0, 128)))
    assert abs(half.getpixel((0, 0))[0] - 127) <= 1

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    loaded = load_image(encoded(palette, "PNG", transparency=0))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 50, 60)]


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_are_scaled_not_cut(mode):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    image = Image.fromarray(values if mode == "I;16" else values.astype(np.int32))
    assert image.mode == mode
    for source in (image, encoded(image, "TIFF")):
        np.testing.assert_array_equal(np.asarray(load_image(source))[0, :, 0], [0, 1, 128, 255])


def test_grey_one_bit_and_cmyk():
    grey = Image.fromarray(ramp()[..., 0])
    np.testing.assert_array_equal(np.asarray(load_image(encoded(grey)))[..., 2], ramp()[..., 0])
    assert load_image(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == (255, 255, 255)
    red = Image.new("RGB", (16, 16), (230, 20, 20)).convert("CMYK")
    got = np.asarray(load_image(encoded(red, "JPEG", quality=95))).astype(int)
    assert abs(got - (230, 20, 20)).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    red, _, blue = load_image(data).getpixel((8, 8))
    assert red > 240
    assert blue < 20


def test_result_is_a_copy_without_baggage():
    image = Image.fromarray(ramp())
    image.info["icc_profile"] = b"x"
    loaded = load_image(image)
    loaded.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (0, 0, 0)
    assert image.info == {"icc_profile": b"x"}
    assert loaded.info == {}


def test_bad_files(tmp_path):
    jpeg = encoded(Image.fromarray(ramp(200, 300)), "JPEG")
    text = tmp_path / "text.jpg"
    text.write_text("this is not a picture, whatever it is called")
    empty = tmp_path / "empty.png"
    empty.touch()
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(jpeg[: len(jpeg) // 2])
    for source, words in [
        (tmp_path / "none.png", "none.png.*does not exist.*check the path"),
        (tmp_path, "is a directory"),
        (text, "text.jpg.*holds text"),
        (empty, "empty.png.*empty"),
        (cut, "cut.jpg.*cut short"),
        (jpeg[:30], "cut short"),
        (encoded(Image.fromarray(ramp()))[:60], "cut short"),
        ("/dev/null", "regular file"),
        ("x" * 5000, "cannot be used as a path"),
        ("a\0b", "cannot be used as a path|does not exist"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\0\0\0\x20ftypisom" + b"\0" * 50, "load_video"),
        (b"\0\0\0\x20ftypheic" + b"\0" * 50, "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "drawing or document"),
        (b"", "empty"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,@@@@", "base64"),
        (io.StringIO("text"), "rb"),
        (None, "NoneType"),
        (7, "int"),
    ]:
        with pytest.raises(MediaError, match=words):
            load_image(source)


def test_bad_arrays_and_tensors():
    for source, words in [
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.full((4, 4), np.inf, np.float32), "infinite"),
        (np.full((4, 4, 3), 200.0), "x / 255"),
        (np.full((4, 4, 3), -1.0), "x \\+ 1"),
        (np.zeros((4, 4, 2), np.uint8), "channels last"),
        (np.zeros((3, 4, 5), np.uint8), "channels last"),
        (np.zeros((2, 4, 4, 3), np.uint8), "channels last"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.zeros((0, 4, 3), np.uint8), "zero size"),
        (np.zeros((4, 4, 3), object), "object"),
        (torch.zeros(5, 4, 3), r"\(c h w\)"),
        (torch.zeros(2, 3, 4, 4), r"\(c h w\)"),
        (torch.full((3, 4, 4), float("nan")), "NaN"),
        (torch.full((3, 4, 4), 9.0), "in \\[0, 1\\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "int32"),
        (torch.zeros(3, 0, 4), "zero size"),
        (Image.new("RGB", (0, 5)), "zero size"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), "outside 0..65535"),
    ]:
        with pytest.raises(MediaError, match=words):
            load_image(source)


def test_too_many_pixels_are_refused_before_decoding():
    bound = Image.MAX_IMAGE_PIXELS
    for source in (png_header_of(30000, 30000), jpeg_header_of(30000, 30000, progressive=True)):
        with pytest.raises(MediaError, match=r"pixels.*smaller"):
            load_image(source)
    # Between Pillow's warning and its error.
    with pytest.raises(MediaError, match="10000 x 10000"):
        load_image(png_header_of(10000, 10000))
    for source in (Image.new("RGB", (20, 20)), np.zeros((20, 20), np.uint8), torch.zeros(3, 20, 20)):
        with pytest.raises(MediaError, match="max_pixels = 399"):
            load_image(source, max_pixels=399)
    assert bound == Image.MAX_IMAGE_PIXELS


def test_large_jpeg_is_reduced_while_decoding():
    data = encoded(Image.fromarray(ramp(400, 600) // 4 * 4), "JPEG", quality=95)
    assert load_image(data, max_pixels=240_000).size == (600, 400)
    assert load_image(data, max_pixels=239_999).size == (300, 200)
    assert load_image(data, max_pixels=4_000).size == (75, 50)
    with pytest.raises(MediaError, match="max_pixels = 3000"):
        load_image(data, max_pixels=3000)


class Response(io.BytesIO):
    """What urlopen gives."""


def test_url_is_read_within_bounds(monkeypatch):
    data = encoded(Image.fromarray(ramp()))
    calls = []

    def answer(request, timeout):
        calls.append((request.full_url, timeout))
        return Response(data)

    monkeypatch.setattr(sources, "urlopen", answer)
    np.testing.assert_array_equal(load_image("https://example.org/a?key=secret"), ramp())
    assert calls == [("https://example.org/a?key=secret", sources.URL_TIMEOUT_SECONDS)]

    with pytest.raises(MediaError, match="larger than 20 bytes"):
        sources.read_source("http://example.org/a", max_bytes=20)
    data = b"<html>no such picture</html>"
    with pytest.raises(MediaError, match="web page") as caught:
        load_image("https://example.org/a?key=secret")
    assert "secret" not in str(caught.value)


def test_url_failures_name_the_address(monkeypatch):
    def fail(request, timeout):
        raise TimeoutError("timed out")

    monkeypatch.setattr(sources, "urlopen", fail)
    with pytest.raises(MediaError, match=r"example.org/b.*timed out"):
        load_image("http://example.org/b")

    monkeypatch.setattr(sources, "urlopen", lambda request, timeout: Response(b"x" * 10))
    monkeypatch.setattr(sources, "URL_TOTAL_SECONDS", -1.0)
    with pytest.raises(MediaError, match="not complete"):
        load_image("http://example.org/slow")


def test_unreadable_file_is_named(monkeypatch, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(ramp())))
    monkeypatch.setattr(sources.os, "access", lambda *args: False)
    with pytest.raises(MediaError, match=r"a.png.*permissions"):
        load_image(path)
