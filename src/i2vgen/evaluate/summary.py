"""Results of the motion suite as shares and means, and as a Markdown table."""

from __future__ import annotations

import numpy as np

from i2vgen.evaluate.motion import EXPECTED_SIGNS, GlobalMotion


def summarize(results: dict) -> dict:
    """Aggregate the results of `run_suite`.

    Returns `rows`: one dictionary per kind that occurs, in the order of `EXPECTED_SIGNS`, then one for all
    moving kinds ("all moving"); `static_ratio`: mean flow of static clips over that of pans, None when either
    is missing; `num_errors`. Shares lie in [0, 1] and are None where there is no clip.
    """
    clips = [clip for clip in results["clips"].values() if "error" not in clip]
    rows = []
    for kind in EXPECTED_SIGNS:
        of_kind = [clip for clip in clips if clip["kind"] == kind]
        if of_kind:
            rows.append({"kind": kind, **_aggregate(of_kind)})
    moving = [clip for clip in clips if clip["kind"] != "static"]
    if moving:
        rows.append({"kind": "all moving", **_aggregate(moving)})

    still = _mean(clip["mean_flow"] for clip in clips if clip["kind"] == "static")
    panning = _mean(clip["mean_flow"] for clip in clips if clip["kind"] in ("pan-left", "pan-right"))
    return {
        "rows": rows,
        "static_ratio": still / panning if still is not None and panning else None,
        "num_errors": len(results["clips"]) - len(clips),
    }


def to_markdown(summary: dict) -> str:
    """Markdown table of a summary, with the static ratio and any errors below."""
    lines = [
        "| motion | clips | right | right, held-out wording | dominant | wanted component |"
        " mean flow, % of width | first frame, dB | s per clip |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in summary["rows"]:
        cells = [
            row["kind"],
            str(row["num_clips"]),
            _percent(row["right_seen"]),
            _percent(row["right_held_out"]),
            _percent(row["dominant"]),
            _wanted_text(row),
            f"{100 * row['mean_flow']:.1f}",
            f"{row['first_frame_psnr']:.1f}",
            f"{row['seconds']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    ratio = summary["static_ratio"]
    lines += ["", f"Static ratio (mean flow, static over pans): {'-' if ratio is None else f'{ratio:.2f}'}"]
    if summary["num_errors"]:
        lines += ["", f"Clips that failed: {summary['num_errors']}"]
    return "\n".join(lines) + "\n"


def _aggregate(clips: list[dict]) -> dict:
    kinds = {clip["kind"] for clip in clips}
    expected = EXPECTED_SIGNS[kinds.pop()] if len(kinds) == 1 else None
    return {
        "num_clips": len(clips),
        "right_seen": _mean(clip["is_right"] for clip in clips if not clip["is_held_out"]),
        "right_held_out": _mean(clip["is_right"] for clip in clips if clip["is_held_out"]),
        "dominant": _mean(clip["is_dominant"] for clip in clips),
        "measured": _mean(clip["is_measured"] for clip in clips),
        "component": expected[0] if expected else None,
        "wanted": _mean(GlobalMotion(**clip["motion"]).signed(expected[0]) for clip in clips) if expected else None,
        "mean_flow": _mean(clip["mean_flow"] for clip in clips),
        "first_frame_psnr": _mean(clip["first_frame_psnr"] for clip in clips),
        "seconds": _mean(clip["seconds"] for clip in clips),
    }


def _mean(values) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _wanted_text(row: dict) -> str:
    if row["component"] is None:
        return "-"
    if row["component"] == "scale":
        return f"scale x{np.exp(row['wanted']):.3f}"
    if row["component"] == "roll":
        return f"roll {row['wanted']:+.1f} deg"
    return f"{row['component']} {100 * row['wanted']:+.1f} %"
