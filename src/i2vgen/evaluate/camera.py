"""Measure "motion": does the video move the way its prompt says, and as fast?

Photos x camera motions x speed words x seeds. A clip without speed word is the plain one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from i2vgen.evaluate.animator import Animator
from i2vgen.evaluate.bars import Report, Table, at_least, below, mean, number, share_at_least, share_text
from i2vgen.evaluate.fidelity import first_frame_psnr
from i2vgen.evaluate.motion import (
    EXPECTED_SIGNS,
    GlobalMotion,
    global_motion,
    mean_flow,
    motion_is_dominant,
    motion_is_right,
    peak_flow,
)
from i2vgen.evaluate.runs import finished, num_errors
from i2vgen.evaluate.wordings import KIND_GROUPS, SPEEDS, camera_wording
from i2vgen.media import load_image

MAX_PSNR = 100.0  # dB; an exact copy is infinite, which JSON cannot hold


@dataclass(frozen=True)
class CameraItem:
    photo: Path
    kind: str
    speed: str
    seed: int
    prompt: str

    @property
    def key(self) -> str:
        return f"{self.photo.name}/{self.kind}/{self.speed}/{self.seed}"


def plan(
    photos: dict[Path, str], num_seeds: int, wordings: str = "held-out", kinds: list[str] | None = None
) -> list[CameraItem]:
    """Every clip; "static" has no speed words. Prompts are "caption, wording".

    Raises ValueError for another value of `wordings`, an unknown kind, or two photos of one name.
    """
    items = []
    for photo, caption in photos.items():
        for kind in kinds or EXPECTED_SIGNS:
            for seed in range(num_seeds):
                for speed in SPEEDS if kind != "static" else ("plain",):
                    wording = camera_wording(kind, speed, photo.name, seed, wordings)
                    prompt = f"{caption}, {wording}" if caption else wording
                    items.append(CameraItem(photo, kind, speed, seed, prompt))
    if len({item.key for item in items}) < len(items):
        raise ValueError("photos: two of them share a file name; rename one")
    return items


def work(item: CameraItem, animator: Animator) -> tuple[dict, dict[str, np.ndarray]]:
    """Make and measure one clip. A static one also says what the measure sees in a still video out of the VAE."""
    image = load_image(item.photo)
    made = animator.animate(image, item.prompt, item.seed)
    record = {"photo": item.photo.name, "kind": item.kind, "speed": item.speed, "seed": item.seed}
    record |= score(item.kind, made.frames) | {"seconds": made.seconds}
    record["first_frame_psnr"] = min(first_frame_psnr(made.frames, image), MAX_PSNR)
    if item.kind == "static":
        still = np.repeat(made.frames[:1], len(made.frames), axis=0)
        record["floor"] = peak_flow(animator.reconstruct(still, seed=item.seed))
    return record, {"": made.frames}


def score(kind: str, frames: np.ndarray) -> dict:
    """What a clip `(f h w 3)` uint8 does, against what `kind` asks for."""
    motion = global_motion(frames)
    return {
        "motion": asdict(motion),
        "is_right": motion_is_right(kind, motion),
        "is_dominant": motion_is_dominant(kind, motion),
        "is_measured": motion.is_measured,
        "mean_flow": mean_flow(frames),
        "peak_flow": peak_flow(frames),
        "size": list(frames.shape[:3]),
    }


def advance(clip: dict) -> float:
    """How far a clip went in the direction asked for; not a number where nothing could be measured."""
    if not clip["is_measured"]:
        return float("nan")
    component, sign = EXPECTED_SIGNS[clip["kind"]]
    return sign * GlobalMotion(**clip["motion"]).signed(component)


def speeds_in_order(clips: list[dict]) -> dict[tuple, bool]:
    """(photo, kind, seed) -> whether 0 < slowly < plain < quickly; only triples that are complete."""
    moving = [clip for clip in clips if clip["kind"] != "static"]

    def triple(clip: dict) -> tuple:
        return clip["photo"], clip["kind"], clip["seed"]

    orders = {}
    for key, group in groupby(sorted(moving, key=triple), triple):
        ways = {clip["speed"]: advance(clip) for clip in group}
        if ways.keys() == SPEEDS.keys():
            orders[key] = bool(0 < ways["slowly"] < ways["plain"] < ways["quickly"])
    return orders


def report(results: dict, notes: list[str]) -> Report:
    """The bars of the camera and tables by motion. `results`: of `run_items`."""
    clips = finished(results)
    plain = [clip for clip in clips if clip["speed"] == "plain"]
    moving = [clip for clip in plain if clip["kind"] != "static"]
    static = [clip for clip in plain if clip["kind"] == "static"]
    orders = speeds_in_order(clips)
    pans = mean(clip["peak_flow"] for clip in moving if clip["kind"] in KIND_GROUPS["pans"])
    still, floor = mean(clip["peak_flow"] for clip in static), mean(clip["floor"] for clip in static)
    psnr = mean(clip["first_frame_psnr"] for clip in clips)
    bars = [
        share_at_least("motion sign right (pans, tilts, zooms, rolls)", [c["is_right"] for c in moving], 0.92),
        share_at_least("speed words in order (0 < slowly < plain < quickly)", list(orders.values()), 0.85),
        below(
            "static camera, flow in % of a pan's", 100 * still / pans if still is not None and pans else None, 10, "%"
        ),
        at_least("first frame against the photo, mean PSNR", psnr, 24, "dB"),
    ]
    if static:
        share = "-" if not pans else f"{100 * floor / pans:.1f} %"
        notes = [
            f"Floor of the flow: a still video that went through the VAE, each latent drawn from its posterior, "
            f"measures {100 * floor:.2f} % of the width, {share} of a pan; the static clips {100 * still:.2f} %.",
            *notes,
        ]
    if clips:
        least = min(clip["first_frame_psnr"] for clip in clips)
        above = [clip["first_frame_psnr"] >= 24 for clip in clips]
        notes = [f"First frame: worst {least:.1f} dB, at least 24 dB in {share_text(above)} of all clips.", *notes]
    tables = [_table_of_kinds(clips, orders), _table_of_groups(moving, orders)]
    return Report("motion", bars, tables, notes, len(results["clips"]), num_errors(results))


def worst_first(results: dict) -> list[str]:
    """Keys of the plain clips for the sheet: the wrong ones, then the others."""
    clips = {k: c for k, c in results["clips"].items() if "error" not in c and c["speed"] == "plain"}
    return sorted(clips, key=lambda key: clips[key]["is_right"])


def _table_of_kinds(clips: list[dict], orders: dict[tuple, bool]) -> Table:
    header = ("motion", "plain clips", "right", "also its largest motion", "slowly right", "quickly right")
    header += (
        "amount slowly / plain / quickly",
        "speeds in order",
        "flow, % of width",
        "first frame, dB",
        "s per clip",
    )
    rows = []
    for kind in EXPECTED_SIGNS:
        of_kind = [clip for clip in clips if clip["kind"] == kind]
        by_speed = {speed: [clip for clip in of_kind if clip["speed"] == speed] for speed in SPEEDS}
        plain = by_speed["plain"]
        if not plain:
            continue
        amounts = "-" if kind == "static" else " / ".join(_amount(kind, by_speed[speed]) for speed in SPEEDS)
        rows.append(
            (
                kind,
                str(len(plain)),
                _percent(clip["is_right"] for clip in plain),
                _percent(clip["is_dominant"] for clip in plain),
                _percent(clip["is_right"] for clip in by_speed["slowly"]),
                _percent(clip["is_right"] for clip in by_speed["quickly"]),
                amounts,
                _percent(is_right for (_, k, _), is_right in orders.items() if k == kind),
                number(mean(clip["peak_flow"] for clip in plain), 1, 100),
                number(mean(clip["first_frame_psnr"] for clip in of_kind)),
                number(mean(clip["seconds"] for clip in of_kind)),
            )
        )
    return Table("By motion; amounts are means in the direction asked for:", header, rows)


def _table_of_groups(moving: list[dict], orders: dict[tuple, bool]) -> Table:
    rows = []
    for group, kinds in KIND_GROUPS.items():
        hits = [clip["is_right"] for clip in moving if clip["kind"] in kinds]
        if hits:
            ordered = [is_right for (_, kind, _), is_right in orders.items() if kind in kinds]
            rows.append((group, share_text(hits), share_text(ordered)))
    return Table("By group, with 95 % intervals:", ("group", "right", "speeds in order"), rows)


def _percent(hits) -> str:
    share = mean(hits)
    return "-" if share is None else f"{100 * share:.0f} %"


def _amount(kind: str, clips: list[dict]) -> str:
    value = mean(advance(clip) for clip in clips if clip["is_measured"])
    if value is None:
        return "-"
    component, sign = EXPECTED_SIGNS[kind]
    if component == "scale":
        return f"x{np.exp(sign * value):.2f}"
    return f"{value:.1f} deg" if component == "roll" else f"{100 * value:.1f} %"
