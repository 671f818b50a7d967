"""Procedural clips: camera moves over a photo, moving cut-outs, ambient effects, windows of the film.

All amounts are for a clip of DURATION seconds, so that the same words mean the same speed at any length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from i2vgen.data import captions
from i2vgen.data.pack import Pack, Photo, Sprite

DURATION = 15 / 8  # seconds between the first and the last of 16 frames at 8 fps
AMOUNTS = {  # pan and tilt: share of the frame's width or height; zoom: log scale; roll: degrees
    "pan": {"slow": 0.09, "normal": 0.18, "fast": 0.32},
    "tilt": {"slow": 0.09, "normal": 0.18, "fast": 0.32},
    "zoom": {"slow": 0.11, "normal": 0.24, "fast": 0.45},
    "roll": {"slow": 4.0, "normal": 10.0, "fast": 20.0},
    "object": {"slow": 0.16, "normal": 0.32, "fast": 0.5},  # share of the frame's width or height
}
CAMERA_NAMES = list(captions.CAMERA_PHRASES)
TARGET_NAMES = ["pan", "tilt", "zoom", "roll", "object_x", "object_y", "static", *captions.AMBIENT_PHRASES]


def true_speeds(targets: dict[str, float]) -> tuple[list[float], list[float]]:
    """What a clip with these targets shows, a second: pan and tilt of the window in half frames, log zoom, roll in
    radians (as `MotionPrior.speeds`), and the object's path in frames (as `ObjectPrior`'s velocity)."""
    units = [2 * AMOUNTS["pan"]["normal"], 2 * AMOUNTS["tilt"]["normal"], AMOUNTS["zoom"]["normal"]]
    units.append(float(np.radians(AMOUNTS["roll"]["normal"])))
    camera = [targets.get(n, 0.0) * u / DURATION for n, u in zip(("pan", "tilt", "zoom", "roll"), units, strict=True)]
    path = [targets.get(n, 0.0) * AMOUNTS["object"]["normal"] / DURATION for n in ("object_x", "object_y")]
    return camera, path


@dataclass
class Move:
    """What happens by the end of DURATION: camera displacement in frame sizes, log zoom, roll in radians."""

    pan: float = 0.0  # > 0: the camera goes right
    tilt: float = 0.0  # > 0: the camera goes down
    zoom: float = 0.0  # > 0: content grows
    roll: float = 0.0  # > 0: the camera turns clockwise
    phrases: list[str] = field(default_factory=list)


@dataclass
class Clip:
    frames: np.ndarray  # uint8 (f h w 3)
    caption: str
    targets: dict[str, float]  # what the caption asks for, in units of the normal amount; see TARGET_NAMES
    mask: np.ndarray | None = None  # float32 (h w) in [0, 1], the moving thing in frame 0


def sample_camera(rng: np.random.Generator, names: list[str] | None = None) -> tuple[Move, dict[str, float]]:
    """One move, or in a fifth of the cases two of different axes; returns it with its targets."""
    names = CAMERA_NAMES if names is None else names
    # plain moves and stillness are asked for most
    weights = np.array([{"static": 1.5, "roll": 0.5}.get(n.split("-")[0], 1.0) for n in names])
    picked = [str(rng.choice(names, p=weights / weights.sum()))]
    if picked[0] != "static" and rng.random() < 0.15:
        other = str(rng.choice(names))
        if other != "static" and other.split("-")[0] != picked[0].split("-")[0]:
            picked.append(other)
    move, targets = Move(), {}
    for name in picked:
        speed = str(rng.choice(["slow", "normal", "fast"], p=[0.22, 0.56, 0.22])) if name != "static" else "normal"
        move.phrases.append(captions.camera_phrase(name, speed, rng))
        if name == "static":
            targets["static"] = 1.0
            continue
        axis, direction = name.split("-")
        sign = 1.0 if direction in ("right", "down", "in", "clockwise") else -1.0
        amount = AMOUNTS[axis][speed]
        setattr(move, axis, sign * (np.radians(amount) if axis == "roll" else amount))
        targets[axis] = sign * amount / AMOUNTS[axis]["normal"]
    return move, targets


def render_camera(
    image: np.ndarray,
    move: Move,
    size: tuple[int, int],
    times: np.ndarray,
    rng: np.random.Generator,
    max_enlargement: float = 1.3,
) -> np.ndarray | None:
    """Film `image` (h w 3) with a window of `size` (W, H) along `move` at `times` (in DURATIONs).

    Returns uint8 (f H W 3), or None if the image is too small to hold the path without being enlarged by
    more than `max_enlargement`.
    """
    width, height = size
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float) * [width / 2, height / 2]
    paths = []
    for u in times:
        angle = move.roll * u
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = np.array([move.pan * u * width, move.tilt * u * height])
        paths.append((rotation * np.exp(-move.zoom * u), centre))
    extent = np.concatenate([corners @ a.T + c for a, c in paths])
    low, high = extent.min(0), extent.max(0)
    image_size = np.array([image.shape[1], image.shape[0]], float)
    largest = float(np.min((image_size - 2) / (high - low)))  # source px per output px
    smallest = 1 / max_enlargement
    if largest < smallest:
        return None
    scale = float(np.exp(rng.uniform(np.log(max(smallest, 0.55 * largest)), np.log(largest))))
    room = image_size - 1 - (high - low) * scale
    origin = rng.uniform(0, 1, 2) * room - low * scale
    oversample = 2 if scale > 1.05 else 1
    frames = []
    for a, c in paths:
        matrix = a * scale / oversample
        shift = origin + c * scale - matrix @ (np.array([width, height]) * oversample / 2 - 0.5)
        warped = cv2.warpAffine(
            image,
            np.column_stack([matrix, shift]),
            (width * oversample, height * oversample),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
        frames.append(cv2.resize(warped, size, interpolation=cv2.INTER_AREA) if oversample > 1 else warped)
    return np.stack(frames)


class ClipMaker:
    """Draws clips of a pack. A clip is a pure function of the generator given."""

    def __init__(self, pack: Pack, kind_weights: dict[str, float]):
        self.pack = pack
        self.kinds = list(kind_weights)
        self.weights = np.array(list(kind_weights.values())) / sum(kind_weights.values())
        if unknown := set(self.kinds) - {"camera", "sprite", "ambient", "film"}:
            raise ValueError(f"data.kind_weights: unknown kind {sorted(unknown)[0]!r}")

    def make(self, size: tuple[int, int], times: np.ndarray, rng: np.random.Generator, kind: str | None = None) -> Clip:
        """A clip of `size` (W, H) at `times` (f), in DURATIONs from 0."""
        kind = kind or str(rng.choice(self.kinds, p=self.weights))
        return getattr(self, f"_{kind}")(size, times, rng)

    def _photo(self, rng: np.random.Generator) -> tuple[Photo, np.ndarray]:
        photo = self.pack.photos[rng.integers(len(self.pack.photos))]
        image = photo.image
        if rng.random() < 0.5:
            image = image[:, ::-1]
        gain, offset = rng.uniform(0.85, 1.15), rng.uniform(-12, 12)
        return photo, np.ascontiguousarray(cv2.convertScaleAbs(image, alpha=gain, beta=offset))

    def _background(
        self,
        size: tuple[int, int],
        times: np.ndarray,
        rng: np.random.Generator,
        names: list[str] | None = None,
    ) -> tuple[np.ndarray, Photo, Move, dict[str, float]]:
        while True:
            move, targets = sample_camera(rng, names)
            photo, image = self._photo(rng)
            frames = render_camera(image, move, size, times, rng)
            if frames is not None:
                return frames, photo, move, targets

    def _camera(self, size: tuple[int, int], times: np.ndarray, rng: np.random.Generator) -> Clip:
        frames, photo, move, targets = self._background(size, times, rng)
        return Clip(frames, captions.join_caption(photo.caption, " and ".join(move.phrases), rng), targets)

    def _sprite(self, size: tuple[int, int], times: np.ndarray, rng: np.random.Generator) -> Clip:
        names = ["static"] if rng.random() < 0.7 else None
        frames, photo, move, targets = self._background(size, times, rng, names)
        sprite = self.pack.sprites[rng.integers(len(self.pack.sprites))]
        direction, speed = _sample_path(rng)
        vector = np.array(captions.DIRECTION_VECTORS[direction], float)
        layer = _cutout(sprite, direction, min(size) * rng.uniform(0.32, 0.55), rng)
        start, delta = _crossing(layer.shape[1::-1], vector * AMOUNTS["object"][speed] * np.array(size), size, rng)
        width, height = size
        layers = [
            cv2.warpAffine(layer, np.array([[1, 0, x], [0, 1, y]], float), (width, height))
            for x, y in start + delta * np.asarray(times)[:, None]
        ]
        for frame, moved in zip(frames, layers, strict=True):
            frame[:] = np.clip(moved[..., :3] + frame * (1 - moved[..., 3:]) + 0.5, 0, 255)
        caption = _sprite_caption(sprite, photo, move, direction, speed, rng)
        amount = AMOUNTS["object"][speed] / AMOUNTS["object"]["normal"]
        targets = {**targets, "object_x": vector[0] * amount, "object_y": vector[1] * amount}
        return Clip(frames, caption, targets, layers[0][..., 3])

    def _ambient(self, size: tuple[int, int], times: np.ndarray, rng: np.random.Generator) -> Clip:
        frames, photo, _, _ = self._background(size, times, rng, ["static"])
        name = str(rng.choice(list(captions.AMBIENT_PHRASES)))
        # effects grow in the first third, because the user's photo shows none of them
        strengths = np.minimum(1.0, 3.0 * times)[:, None, None, None]
        frames = (frames + (_AMBIENT[name](frames, times, rng).astype(np.float32) - frames) * strengths).astype(
            np.uint8
        )
        phrase = str(rng.choice(captions.AMBIENT_PHRASES[name]))
        return Clip(frames, captions.join_caption(photo.caption, phrase, rng), {name: 1.0})

    def _film(self, size: tuple[int, int], times: np.ndarray, rng: np.random.Generator) -> Clip:
        span = round(times[-1] * DURATION * 24) + 1
        shots = [s for s in self.pack.shots if s.end_frame - s.start_frame >= span and s.motion < 6]
        lengths = np.array([s.end_frame - s.start_frame for s in shots], float)
        shot = shots[rng.choice(len(shots), p=lengths / lengths.sum())]
        start = int(rng.integers(shot.start_frame, shot.end_frame - span + 1))
        all_frames = self.pack.film_frames(start, span)
        frames = all_frames[np.round(times * DURATION * 24).astype(int)]
        height, width = frames.shape[1:3]
        scale = rng.uniform(0.6, 1.0) * min(width / size[0], height / size[1])
        w, h = int(size[0] * scale), int(size[1] * scale)
        left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
        crop = frames[:, top : top + h, left : left + w]
        method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
        frames = np.stack([cv2.resize(f, size, interpolation=method) for f in crop])
        return Clip(frames, shot.caption, {})


def sample_caption(pack: Pack, rng: np.random.Generator) -> tuple[str, dict[str, float]]:
    """The caption and targets of a clip of a camera move (six in ten), a moving cut-out (three) or an effect, without
    the clip: for what is learned from words alone."""
    photo, kind = pack.photos[rng.integers(len(pack.photos))], rng.random()
    if kind < 0.6:
        move, targets = sample_camera(rng)
        return captions.join_caption(photo.caption, " and ".join(move.phrases), rng), targets
    if kind < 0.9:
        move, targets = sample_camera(rng, ["static"] if rng.random() < 0.6 else None)
        sprite, (direction, speed) = pack.sprites[rng.integers(len(pack.sprites))], _sample_path(rng)
        amount = AMOUNTS["object"][speed] / AMOUNTS["object"]["normal"]
        x, y = captions.DIRECTION_VECTORS[direction]
        targets = {**targets, "object_x": x * amount, "object_y": y * amount}
        return _sprite_caption(sprite, photo, move, direction, speed, rng), targets
    name = str(rng.choice(list(captions.AMBIENT_PHRASES)))
    return captions.join_caption(photo.caption, str(rng.choice(captions.AMBIENT_PHRASES[name])), rng), {name: 1.0}


def _sample_path(rng: np.random.Generator) -> tuple[str, str]:
    """Direction and speed of a cut-out."""
    direction = str(rng.choice(["left", "right", "up", "down"], p=[0.35, 0.35, 0.15, 0.15]))
    return direction, str(rng.choice(["slow", "normal", "fast"], p=[0.12, 0.76, 0.12]))


def _sprite_caption(
    sprite: Sprite, photo: Photo, move: Move, direction: str, speed: str, rng: np.random.Generator
) -> str:
    parts = [captions.object_phrase(sprite.caption, sprite.kind, direction, speed, rng)]
    if rng.random() < 0.5:
        parts.append(str(rng.choice(["in front of", "over", "past"])) + " " + photo.caption)
    is_moving = any((move.pan, move.tilt, move.zoom, move.roll))
    if is_moving or rng.random() < 0.3:
        parts.append(" and ".join(move.phrases))
    return ", ".join(parts)


def _cutout(sprite: Sprite, direction: str, side: float, rng: np.random.Generator) -> np.ndarray:
    """The sprite facing where it goes, its long side `side` pixels: float32 (h w 4), colour times alpha, alpha."""
    image = sprite.image
    faces = {"left": "right", "right": "left"}.get(direction) == sprite.facing
    if faces or (sprite.facing == "none" and rng.random() < 0.5):
        image = image[:, ::-1]
    ratio = side / max(image.shape[:2])
    image = cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA).astype(np.float32)
    colour, alpha = image[..., :3], image[..., 3:] / 255
    return np.concatenate([colour * alpha, alpha], axis=2)


def _crossing(
    extent: tuple[int, int], delta: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(start, delta) in pixels of something of `extent` (W, H) that stays in the frame if there is room."""
    room = np.array(size) - extent
    low = np.maximum(0, -delta) * 0.9
    high = np.maximum(low, room - np.maximum(0, delta) * 0.9)
    return rng.uniform(low, high), delta


def _snow(frames: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, h, w, _ = frames.shape
    flakes = rng.uniform(size=(int(90 * w * h / 128**2), 4))
    out = frames.astype(np.float32)
    for frame, u in zip(out, times, strict=True):
        layer = np.zeros((h, w), np.float32)
        for x, y, depth, phase in flakes:
            px = (x * w + 3 * np.sin(6 * u + 6 * phase)) % w
            py = (y + (0.35 + 0.25 * depth) * u) % 1 * h
            radius = (0.6 + 1.2 * depth) * min(h, w) / 128
            cv2.circle(layer, (int(px * 8), int(py * 8)), int(radius * 8), 0.5 + 0.5 * depth, -1, cv2.LINE_AA, 3)
        frame += (250 - frame) * cv2.GaussianBlur(layer, (3, 3), 0)[..., None]
    return out.astype(np.uint8)


def _rain(frames: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, h, w, _ = frames.shape
    drops = rng.uniform(size=(int(60 * w * h / 128**2), 2))
    out = frames.astype(np.float32) * 0.85
    for frame, u in zip(out, times, strict=True):
        layer = np.zeros((h, w), np.float32)
        for x, y in drops:
            px, py = x * w, (y + 4.0 * u) % 1.1 * h
            cv2.line(layer, (int(px), int(py)), (int(px - 0.01 * w), int(py - 0.08 * h)), 0.45, 1, cv2.LINE_AA)
        frame += (220 - frame) * layer[..., None]
    return out.astype(np.uint8)


def _fog(frames: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, h, w, _ = frames.shape
    noise = cv2.resize(rng.uniform(size=(6, 12)).astype(np.float32), (3 * w, h), interpolation=cv2.INTER_CUBIC)
    direction = rng.choice([-1, 1])
    out = frames.astype(np.float32)
    for frame, u in zip(out, times, strict=True):
        shift = int(w + direction * 0.5 * w * u)
        density = np.clip(noise[:, shift : shift + w] * 1.2 - 0.3, 0, 0.75)[..., None]
        frame += (225 - frame) * density
    return np.clip(out, 0, 255).astype(np.uint8)


def _flicker(frames: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gains = 1 - 0.35 * (0.5 - 0.5 * np.cos(2 * np.pi * 3 * times)) * rng.uniform(0.7, 1.0)
    return np.clip(frames * gains[:, None, None, None], 0, 255).astype(np.uint8)


def _sway(frames: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, h, w, _ = frames.shape
    amount = 0.05 * w * rng.choice([-1, 1])
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    lever = (1 - y / h) ** 1.5  # the bottom stands still
    return np.stack(
        [
            cv2.remap(
                f,
                (x + amount * np.sin(2 * np.pi * 1.5 * u) * lever).astype(np.float32),
                y,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REFLECT,
            )
            for f, u in zip(frames, times, strict=True)
        ]
    )


_AMBIENT = {"snow": _snow, "rain": _rain, "fog": _fog, "flicker": _flicker, "sway": _sway}
