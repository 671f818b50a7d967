"""The parts of the page that show what a session has, as HTML; everything from outside is escaped."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from i2vgen.cli.report import readable_seconds
from i2vgen.web.jobs import WAITING, Job, Line
from i2vgen.web.moves import MOVES, SPEEDS, read_move
from i2vgen.web.sessions import Clip, Result, Session, Takes
from i2vgen.web.uploads import EXAMPLES

CLIPS = "studio/clips/"
# What the settings of a video are called on the page, in their order.
SHOWN_SETTINGS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "seed": "Seed",
    "model": "Model",
    "refiner": "Refiner",
    "refine_strength": "Refinement strength",
    "fit": "Photo brought to size by",
    "device": "Device",
    "dtype": "Precision",
}
SHOWN_STAGE = {
    "num_frames": "{} frames",
    "target_fps": "{} a second",
    "num_inference_steps": "{} steps",
    "guidance_scale": "guidance {}",
}


def status(session: Session, line: Line) -> str:
    """What is being made, how far it is, and how long it will take; or what went wrong."""
    job, parts = session.job, []
    if session.notice:
        parts.append(
            f'<div class="notice" role="alert"><p>{escape(session.notice)}</p>'
            '<button type="button" class="quiet" data-act="dismiss" aria-label="Dismiss">✕</button></div>'
        )
    if job is not None and job.is_active:
        parts.append(_progress(job, line))
    return "".join(parts)


def _progress(job: Job, line: Line) -> str:
    if job.state == WAITING:
        before = line.place(job)
        others = "1 other" if before == 1 else f"{before} others"
        text, left = "In line", f"{others} before you" if before else "next"
        percent, bar = 0, "is-waiting"
    else:
        seconds, percent, bar = job.seconds_left(), round(100 * job.share), ""
        text = job.text or "Starting"
        left = f"about {readable_seconds(round(seconds))} left" if seconds >= 1 else "almost done"
        left = left if job.parts else "looking how long it takes"
    if job.is_stopping:
        left = "stopping after this step"
    return (
        f'<div class="progress"><div class="progress-text"><strong>{escape(text)}</strong>'
        f'<span class="left">{escape(left)}</span></div>'
        f'<div class="bar {bar}" role="progressbar" aria-label="{escape(job.title)}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><i style="width:{percent}%"></i></div>'
        '<button type="button" class="plain" data-act="cancel">Cancel</button></div>'
    )


def photo(session: Session) -> str:
    """The place where the picture is dropped, and the examples below."""
    cards = "".join(
        f'<button type="button" class="example" data-act="example" data-id="{e.key}" title="{escape(e.prompt)}" '
        f'aria-label="Example: {escape(e.prompt)}"><img src="studio/examples/{e.key}.jpg" alt=""></button>'
        for e in EXAMPLES.values()
    )
    given = session.photo
    shown = None if given is None else (given.preview, given.name, f"{given.size[0]} × {given.size[1]}")
    return (
        _drop("photo", "image/*", "Drop a photo here", "or choose a file, or paste one", shown)
        + f'<div class="examples" aria-label="Example photos"><span>Or try one</span>{cards}</div>'
    )


def footage(session: Session) -> str:
    given = session.footage
    if given is None:
        return _drop("video", "video/*,image/gif,image/webp", "Drop a video here", "MP4, WebM, MOV, GIF", None)
    clip = given.clip
    facts = f"{clip.width} × {clip.height}, {clip.num_frames} frames. {given.note}"
    return _drop("video", "video/*,image/gif,image/webp", "", "", (clip.poster, str(given.source["path"]), facts))


def settings_drop(session: Session) -> str:
    text = "Drop a video made by i2vgen"
    html = _drop("settings", "video/*,image/gif,image/webp,image/png", text, "its settings fill this form", None, True)
    if session.loaded is None:
        return html
    loaded, (name, sha256) = session.loaded, session.loaded.photo
    same = session.photo is not None and session.photo.sha256 == sha256
    photo_text = "The photo is the same." if same else f"Now give the photo too: {name}." if name else ""
    return html + f'<p class="hint" role="status">Settings of {escape(loaded.name)} are in. {escape(photo_text)}</p>'


def _drop(
    kind: str, accept: str, text: str, hint: str, shown: tuple[str, str, str] | None, is_small: bool = False
) -> str:
    classes = "drop" + (" is-small" if is_small else "") + (" has-file" if shown else "")
    inside = f'<span class="drop-text"><strong>{escape(text)}</strong><small>{escape(hint)}</small></span>'
    if shown is not None:
        picture, name, facts = shown
        inside = (
            f'<img src="{CLIPS}{picture}" alt="{escape(name)}"><span class="drop-name">'
            f"<b>{escape(name)}</b><small>{escape(facts)}</small><em>Change</em></span>"
        )
    label = escape(text or f"Change the {kind}")
    return (
        f'<label class="{classes}" data-drop="{kind}"><input type="file" accept="{accept}" data-upload="{kind}" '
        f'aria-label="{label}">{inside}</label><p class="upload-error" role="alert" hidden></p>'
    )


def moves(prompt: str) -> str:
    """Buttons that write camera moves into the prompt; pressed is what the prompt tells."""
    told, speed = read_move(prompt or "")
    buttons = "".join(
        f'<button type="button" class="move" data-act="move" data-id="{name}" aria-pressed="{_bool(name == told)}">'
        f'<i aria-hidden="true">{move.sign}</i>{move.label}</button>'
        for name, move in MOVES.items()
    )
    words = {"slow": "Slow", "normal": "Normal", "fast": "Fast"}
    off = " disabled" if told in (None, "static") else ""
    speeds = "".join(
        f'<button type="button" data-act="speed" data-id="{name}"{off} '
        f'aria-pressed="{_bool(name == speed and not off)}">{words[name]}</button>'
        for name in SPEEDS
    )
    return (
        f'<div class="moves" role="group" aria-label="Camera moves">{buttons}</div>'
        f'<div class="speeds" role="group" aria-label="Speed of the camera">{speeds}</div>'
    )


def takes(session: Session, has_refiner: bool) -> str:
    """The takes side by side, those to come as empty places; without any, how it goes."""
    shown = session.takes
    if shown is None:
        return "" if session.result is not None else welcome()
    count = len(shown.clips)
    cards = "".join(_take(index, clip, shown) for index, clip in enumerate(shown.clips))
    chosen = shown.clips[shown.picked] if shown.picked is not None else None
    busy = session.job is not None and session.job.is_active
    below = '<p class="hint">Choose the take whose motion you like.</p>' if any(shown.clips) else ""
    if chosen is not None:
        refine = (
            f'<button type="button" class="primary" data-act="refine"{" disabled" if busy else ""}>'
            f"Refine take {shown.picked + 1}</button>"
        )
        below = (
            f'<div class="actions">{refine if has_refiner else ""}{_downloads(chosen, f"take-{chosen.seed}")}'
            f'<button type="button" class="plain" data-act="lock" data-id="{chosen.seed}">Keep seed</button></div>'
            + _settings(chosen, shown.key, shown.picked)
        )
    return (
        f'<section class="card"><h2>Takes <small>{escape(shown.wish.prompt or "no text")}</small></h2>'
        f'<div class="takes n{min(count, 8)}" role="group" aria-label="Takes">{cards}</div>{below}</section>'
    )


def _take(index: int, clip: Clip | None, shown: Takes) -> str:
    label = f"Take {index + 1}"
    if clip is None:
        return f'<div class="take is-coming" style="{_ratio(shown)}"><span>{label}</span></div>'
    return (
        f'<button type="button" class="take" data-act="pick" data-id="{index}" style="{_ratio(shown)}" '
        f'aria-pressed="{_bool(index == shown.picked)}" aria-label="{label}, seed {clip.seed}">{_video(clip)}'
        f"<span>{label} <small>seed {clip.seed}</small></span></button>"
    )


def _ratio(shown: Takes) -> str:
    first = next((clip for clip in shown.clips if clip is not None), None)
    width, height = (first.width, first.height) if first else shown.wish.size or shown.photo.size
    return f"aspect-ratio:{width}/{height}"


def _video(clip: Clip, classes: str = "") -> str:
    return (
        f'<video class="{classes}" src="{CLIPS}{clip.name}" poster="{CLIPS}{clip.poster}" muted loop autoplay '
        'playsinline disablepictureinpicture preload="auto" tabindex="-1"></video>'
    )


def result(session: Session) -> str:
    """The refined video over what it was before, with a slider between them."""
    shown = session.result
    if shown is None:
        return ""
    clip, before = shown.clip, shown.before
    note = f'<p class="hint">{escape(shown.note)}</p>' if shown.note else ""
    tall = " is-tall" if clip.height > clip.width else ""
    return (
        f'<section class="card"><h2>Refined <small>{clip.width} × {clip.height}, {clip.num_frames} frames, '
        f"{clip.fps:g} a second, made in {readable_seconds(clip.seconds)}</small></h2>"
        f'<div class="compare{tall}" style="aspect-ratio:{clip.width}/{clip.height};'
        f'--ratio:{clip.width / clip.height:.4f}">{_video(clip, "after")}{_video(before, "before")}'
        '<b class="side is-before">before</b><b class="side is-after">refined</b><u aria-hidden="true"></u>'
        '<input type="range" min="0" max="100" value="50" step="1" aria-label="Compare before and refined"></div>'
        f'{note}<div class="actions"><button type="button" class="plain" data-play aria-pressed="false">Pause</button>'
        f"{_downloads(clip, f'video-{clip.seed}')}</div>{_settings(clip, shown.key, None)}</section>"
    )


def _downloads(clip: Clip, stem: str) -> str:
    gif = Path(clip.name).with_suffix(".gif").name
    return (
        f'<a class="plain" href="{CLIPS}{clip.name}?download={stem}" download>MP4</a>'
        f'<a class="plain" href="{CLIPS}{gif}?download={stem}" download>GIF</a>'
    )


def _settings(clip: Clip, key: str, index: int | None) -> str:
    rows = "".join(f"<dt>{escape(n)}</dt><dd>{escape(v)}</dd>" for n, v in setting_rows(clip.settings))
    text = escape(json.dumps(clip.settings, indent=2, ensure_ascii=False))
    buttons = '<button type="button" class="plain" data-copy="settings">Copy settings</button>'
    if clip.command:
        buttons += '<button type="button" class="plain" data-copy="command">Copy command</button>'
    if clip.settings.get("kind") == "generate":
        place = key if index is None else f"{key}/{index}"
        buttons += f'<button type="button" class="plain" data-act="use" data-id="{place}">Use in the form</button>'
    command = f'<code data-text="command">{escape(clip.command)}</code>' if clip.command else ""
    return (
        f'<details class="settings"><summary>Settings</summary><dl>{rows}</dl>{command}'
        f'<pre data-text="settings" hidden>{text}</pre><div class="actions">{buttons}</div></details>'
    )


def setting_rows(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what a person wants to see of settings; all of it is in what is copied."""
    rows = [(label, str(settings[k])) for k, label in SHOWN_SETTINGS.items() if settings.get(k) not in (None, "")]
    for key, label in (("base", "Base stage"), ("refine", "Refinement")):
        stage = settings.get(key)
        if isinstance(stage, dict):
            facts = [f"{stage.get('width')} × {stage.get('height')}"]
            facts += [words.format(stage[name]) for name, words in SHOWN_STAGE.items() if name in stage]
            facts = [text.removesuffix("s") if text.startswith("1 ") else text for text in facts]
            rows.append((label, ", ".join(facts)))
    for used in settings.get("lora") or ():
        rows.append(("LoRA", f"{Path(str(used.get('path'))).name}, weight {used.get('weight')}"))
    if isinstance(settings.get("image"), dict):
        rows.append(("Photo", str(settings["image"].get("path"))))
    return rows


def history(session: Session) -> str:
    """All that was made, newest first, as pictures to open again."""
    items = []
    for entry in session.history:
        if isinstance(entry, Result):
            clip, text, what = entry.clip, entry.prompt, "Refined"
        else:
            clip = next((c for c in entry.clips if c is not None), None)
            num = sum(c is not None for c in entry.clips)
            text, what = entry.wish.prompt, f"{num} take{'' if num == 1 else 's'}"
        if clip is None:
            continue
        is_shown = _bool(entry in (session.result, session.takes))
        items.append(
            f'<button type="button" class="past" data-act="open" data-id="{entry.key}" aria-pressed="{is_shown}">'
            f'<img src="{CLIPS}{clip.poster}" alt=""><span><b>{what}</b>'
            f"<small>{escape(text or 'no text')}</small></span></button>"
        )
    if not items:
        return ""
    return (
        '<section class="card"><h2>Made here <small>kept until the studio ends</small></h2>'
        f'<div class="history">{"".join(items)}</div>'
        '<button type="button" class="quiet" data-act="clear">Clear everything</button></section>'
    )


def _bool(value: bool) -> str:
    return "true" if value else "false"


def welcome() -> str:
    """What stands where the takes will be: how it goes, and photos to begin with."""
    cards = "".join(
        f'<button type="button" class="starter" data-act="example" data-id="{e.key}">'
        f'<img src="studio/examples/{e.key}.jpg" alt=""><span>{escape(e.prompt)}</span></button>'
        for e in EXAMPLES.values()
    )
    return (
        f'<section class="card welcome"><h2>How it goes</h2><ol>{STEPS}</ol></section>'
        '<section class="card"><h2>Begin with one of these <small>a click makes its takes</small></h2>'
        f'<div class="starters">{cards}<button type="button" class="starter is-own" data-choose="photo">'
        "<span>A photo of yours</span></button></div></section>"
    )


STEPS = """<li><b>A photo and a line</b>Drop a picture, say what happens, or press a camera move.</li>
<li><b>Takes</b>A few small drafts come in, each with its own seed. Choose the motion that you like.</li>
<li><b>Refine</b>That very take becomes larger and sharper, and you compare the two.</li>"""
