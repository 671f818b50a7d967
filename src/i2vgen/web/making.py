"""The work behind the buttons: takes of a photo, the refinement of one of them, or of any video."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from i2vgen.cli.info import memory_of
from i2vgen.cli.output import write_video_file
from i2vgen.cli.preview import next_command
from i2vgen.cli.refine import refine_options, refined_frames
from i2vgen.cli.report import readable_bytes
from i2vgen.pipelines.estimate import Estimate, estimate
from i2vgen.web.jobs import Job
from i2vgen.web.sessions import Clip, Footage, Photo, Result, Session, Takes
from i2vgen.web.wishes import Wish, settled

if TYPE_CHECKING:
    import numpy as np

    from i2vgen.pipelines import BaseOptions, CascadePipeline, RefineOptions

POSTER_SIDE = 480


def takes_job(session: Session, cascade: CascadePipeline, wish: Wish, photo: Photo, flags: dict[str, str]) -> Job:
    """A job that fills `session.takes` one clip after the other. Raises ValueError if the model cannot do it.

    `flags`: the options of the command line that name the model, for the commands shown.
    """
    wish, base, refine = settled(wish, cascade, photo.size)
    takes = Takes(secrets.token_hex(6), wish, photo, [None] * wish.num_takes)
    steps = base.num_inference_steps

    def work(job: Job) -> None:
        checked_estimate(cascade, base, refine)  # that what is chosen later will fit
        job.plan([checked_estimate(cascade, base, None).seconds] * wish.num_takes)
        session.takes, session.result = takes, None
        session.remember(takes)
        try:
            picture = photo.load()
            for index, seed in enumerate(wish.seeds):
                label = f"Take {index + 1} of {wish.num_takes}"
                job.tick(index, 0, steps, label)

                def progress(stage: str, done: int, total: int, index: int = index, label: str = label) -> None:
                    # Decoding counts as one more step.
                    job.tick(index, done, total + 1, f"{label}, step {done} of {total}")

                begun = time.monotonic()
                result = cascade(
                    picture,
                    prompt=wish.prompt,
                    negative_prompt=wish.negative_prompt,
                    seed=seed,
                    refine=False,
                    size=(base.width, base.height),
                    **wish.changes,
                    fit=wish.fit,
                    progress=progress,
                )
                settings = result.settings[0] | {"image": photo.source}
                command = command_of(wish, photo, seed, flags)
                clip = keep(session, "take", result.frames[0], result.fps, settings, begun, command)
                takes.clips[index] = clip
                session.changed()
        finally:
            takes.clips = [clip for clip in takes.clips if clip is not None]
            takes.is_over = True
            if not takes.clips:
                session.takes = None
                session.history = [entry for entry in session.history if entry is not takes]
            session.changed()

    title = f"{wish.num_takes} take{'s' if wish.num_takes > 1 else ''}"
    return Job(session.token, title, work)


def refine_take_job(session: Session, cascade: CascadePipeline, takes: Takes, index: int, flags: dict[str, str]) -> Job:
    """A job that makes the refined video of a take: the same seed gives the same base video again."""
    if cascade.refiner is None:
        raise ValueError("This model has no refinement stage: start the studio with a refiner.")
    wish, photo, before = takes.wish, takes.photo, takes.clips[index]
    wish, base, refine = settled(wish, cascade, photo.size)

    def work(job: Job) -> None:
        expected = checked_estimate(cascade, base, refine, wish.refine_strength)
        first = expected.stages["base"]
        job.plan([first, expected.seconds - first])
        job.tick(0, 0, 1, f"Take {index + 1} once more")
        begun = time.monotonic()

        def progress(stage: str, done: int, total: int) -> None:
            what = f"Take {index + 1} once more" if stage == "base" else "Refining"
            extra = 1 if stage == "refine" else 0  # decoding
            job.tick(0 if stage == "base" else 1, done, total + extra, f"{what}, step {done} of {total}")

        result = cascade(
            photo.load(),
            prompt=wish.prompt,
            negative_prompt=wish.negative_prompt,
            seed=before.seed,
            refine=True,
            size=wish.size,
            **wish.changes,
            refine_steps=wish.refine_steps,
            refine_strength=wish.refine_strength,
            fit=wish.fit,
            keep_base=True,
            progress=progress,
        )
        note = ""
        if digest_of(result.base_frames[0]) != before.digest:
            note = "The base video came out a little different this time; what you compare with is the take."
        settings = result.settings[0] | {"image": photo.source}
        command = command_of(wish, photo, before.seed, flags)
        clip = keep(session, "video", result.frames[0], result.fps, settings, begun, command)
        session.result = Result(secrets.token_hex(6), clip, before, wish.prompt, note)
        session.remember(session.result)

    return Job(session.token, f"refinement of take {index + 1}", work)


def refine_video_job(
    session: Session,
    cascade: CascadePipeline,
    footage: Footage,
    prompt: str,
    seed: int,
    size: tuple[int, int] | None,
    steps: int | None,
    strength: float | None,
) -> Job:
    """A job that refines a video that was given. Raises ValueError if the model cannot do it."""
    before = footage.clip
    options = refine_options(cascade, (before.width, before.height), size, steps, None, None)
    settings = {
        "kind": "refine",
        "model": cascade.model_name,
        "lora": [used for used in cascade.lora_settings() if used["stage"] == "refine"],
        "exact": False,
        "prompt": prompt,
        "seed": seed,
        "fit": "crop",
        "fps": before.fps,
        "num_frames": before.num_frames,
        "refine": asdict(options),
        "refine_strength": strength,
        "video": footage.source,
        "image": None,
    }

    def work(job: Job) -> None:
        job.plan([checked_estimate(cascade, None, options, strength, before.num_frames).seconds])
        job.tick(0, 0, 1, "Refining")
        begun = time.monotonic()

        def progress(stage: str, done: int, total: int) -> None:
            job.tick(0, done, total + 1, f"Refining, step {done} of {total}")

        refined, made = refined_frames(cascade, footage.load(), None, settings, options, progress)
        clip = keep(session, "video", refined, before.fps, made, begun)
        session.result = Result(secrets.token_hex(6), clip, before, prompt)
        session.remember(session.result)

    return Job(session.token, "refinement of a video", work)


def checked_estimate(
    cascade: CascadePipeline,
    base: BaseOptions | None,
    refine: RefineOptions | None,
    strength: float | None = None,
    num_frames: int | None = None,
) -> Estimate:
    """Time and memory of a run. Raises ValueError if it cannot fit into memory by far."""
    device = cascade.vae.device
    dtype = (cascade.refine_unet if cascade.unet is None else cascade.unet).dtype
    guess = estimate(cascade, base, refine, device, dtype, num_frames, strength)
    installed = memory_of(device)
    if installed and guess.memory_bytes > 2 * installed:
        needed, has = readable_bytes(guess.memory_bytes), readable_bytes(installed)
        raise ValueError(f"This would need about {needed} of memory and there are {has}: make it smaller or shorter.")
    return guess


def keep(
    session: Session,
    stem: str,
    frames: np.ndarray,
    fps: float,
    settings: dict[str, Any],
    begun: float,
    command: str = "",
) -> Clip:
    """Write a video and its poster into the session's folder."""
    name = session.new_name(stem, ".mp4")
    write_video_file(str(session.folder / name), frames, fps, settings)
    poster = Path(name).with_suffix(".jpg").name
    picture = Image.fromarray(frames[0])
    picture.thumbnail((POSTER_SIDE, POSTER_SIDE))
    picture.save(session.folder / poster, quality=88)
    count, height, width = frames.shape[:3]
    seconds, seed = time.monotonic() - begun, settings.get("seed", 0)
    return Clip(name, poster, seed, count, width, height, fps, seconds, settings, command, digest_of(frames))


def digest_of(frames: np.ndarray) -> str:
    return hashlib.sha256(frames.tobytes()).hexdigest()


def command_of(wish: Wish, photo: Photo, seed: int, flags: dict[str, str]) -> str:
    """The command line that makes the refined video of a seed."""
    size = f"{wish.size[0]}x{wish.size[1]}" if wish.size else None
    given = wish.changes | {"size": size, "negative_prompt": wish.negative_prompt, "fit": wish.fit}
    given |= {"refine_steps": wish.refine_steps, "refine_strength": wish.refine_strength}
    return next_command(photo.name, wish.prompt, seed, given | flags)
