"""The page itself, in Gradio: a form on the left, what it makes on the right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr

from i2vgen.pipelines.presets import PRESETS
from i2vgen.web import render
from i2vgen.web.actions import Studio
from i2vgen.web.files import ENDED
from i2vgen.web.moves import with_move, with_speed
from i2vgen.web.sessions import Session
from i2vgen.web.wishes import AS_PHOTO, FORM, MAX_TAKES, OWN_PRESET, SHAPES

# Looked at so often while something is made; what has not changed is not sent.
POLL_SECONDS = 0.25
SYSTEM_FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO_FONT = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
# studio.js binds the clicks and uploads of a component to its events.
BIND = "(function go() { window.studio ? studio.bind(element, trigger, 'click', 'upload') : setTimeout(go, 30); })()"
HEAD = (
    '<link rel="stylesheet" href="studio/static/studio.css"><script src="studio/static/studio.js" defer></script>'
    '<link rel="icon" type="image/svg+xml" href="studio/static/icon.svg">'
    '<meta name="color-scheme" content="light dark">'
)
EVENT = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None, "trigger_mode": "multiple"}


def theme() -> gr.themes.Base:
    """Only the fonts: colours and spaces are in studio.css."""
    return gr.themes.Base(font=list(SYSTEM_FONT), font_mono=list(MONO_FONT))


def build_page(studio: Studio) -> gr.Blocks:
    """The page over a studio; each handler finds its session in the request."""
    with gr.Blocks(title="i2vgen studio", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_header(studio), elem_id="top", js_on_load=None, apply_default_css=False)
        with gr.Row(elem_id="studio", equal_height=False):
            with gr.Column(scale=5, min_width=300, elem_id="asking"), gr.Tabs(elem_id="ways"):
                if studio.has_base:
                    with gr.Tab("Animate a photo", id="animate"):
                        form, photo, moves, settings, go = _animate_form(studio)
                if studio.has_refiner:
                    with gr.Tab("Refine a video", id="refine"):
                        refine_form, footage, refine_go = _refine_form(studio)
            with gr.Column(scale=8, min_width=300, elem_id="showing"):
                status = gr.HTML(elem_id="status", js_on_load=BIND, apply_default_css=False)
                result = gr.HTML(elem_id="result", js_on_load=BIND, apply_default_css=False)
                takes = gr.HTML(elem_id="takes", js_on_load=BIND, apply_default_css=False)
                history = gr.HTML(elem_id="history", js_on_load=BIND, apply_default_css=False)

        # 1. What is shown, and follows the session's job until it is over
        view = [status, takes, result, history]

        async def watch(request: gr.Request) -> AsyncIterator[list[Any]]:
            session, sent = session_of(request), None
            while True:
                if session is None:
                    yield _lost(view)
                    return
                studio.finish(session)
                is_busy = session.job is not None and session.job.is_active
                now = [
                    render.status(session, studio.line),
                    render.takes(session, studio.has_refiner),
                    render.result(session),
                    render.history(session),
                ]
                yield [gr.skip() if sent is not None and a == b else a for a, b in zip(now, sent or now, strict=True)]
                sent = now
                if not is_busy:
                    return
                await asyncio.sleep(POLL_SECONDS)

        following = {"fn": watch, "inputs": None, "outputs": view, **EVENT}
        page.load(**following)

        # 2. Clicks on what is shown
        def clicked(event: gr.EventData, request: gr.Request) -> None:
            session, act, key = session_of(request), _said(event, "act"), _said(event, "id")
            if session is None:
                return
            if act == "refine":
                studio.refine_pick(session)
            elif act in ("pick", "open"):
                getattr(studio, act)(session, key)
            elif act in ("cancel", "dismiss", "clear"):
                getattr(studio, act)(session)

        for part in view:
            part.click(clicked, None, None, **EVENT).then(**following)

        # 3. The form of the first tab
        if studio.has_base:
            fields = [form[name] for name in FORM]
            wired = partial(_wire_animation, studio, form, fields, photo, moves, settings, go, view, following)
            wired(page)

        # 4. The second tab
        if studio.has_refiner:

            def refine(request: gr.Request, *values: Any) -> None:
                if (session := session_of(request)) is not None:
                    studio.refine_footage(session, dict(zip(refine_form, values, strict=True)))

            refine_go.click(refine, list(refine_form.values()), None, **EVENT).then(**following)
            show = _shower(render.footage)
            page.load(show, None, footage, **EVENT)
            footage.upload(show, None, footage, **EVENT).then(**following)
            history.click(show, None, footage, **EVENT)
    page.queue(default_concurrency_limit=None, max_size=None)
    return page


def _wire_animation(studio, form, fields, photo, moves, settings, go, view, following, page) -> None:
    show_photo, show_settings = _shower(render.photo), _shower(render.settings_drop)

    def make(request: gr.Request, *values: Any) -> Any:
        session = session_of(request)
        seed = None if session is None else studio.make_takes(session, dict(zip(FORM, values, strict=True)))
        return gr.skip() if seed is None else seed

    def on_photo(event: gr.EventData, request: gr.Request, *values: Any) -> list[Any]:
        session, given = session_of(request), dict(zip(FORM, values, strict=True))
        prompt = None
        if session is not None and _said(event, "act") == "example":
            prompt = studio.choose_example(session, _said(event, "id"))
            if prompt is not None:
                given |= {"prompt": prompt}
                studio.make_takes(session, given)
        return [gr.skip() if prompt is None else prompt, show_photo(request)]

    def on_move(event: gr.EventData, prompt: str) -> Any:
        act, key = _said(event, "act"), _said(event, "id")
        write = {"move": with_move, "speed": with_speed}.get(act)
        if write is None:
            return gr.skip()
        if act == "move":
            told, speed = render.read_move(prompt)
            return with_move(prompt, key, speed if told else "normal")
        return with_speed(prompt, key)

    def fill(values: dict[str, Any] | None) -> list[Any]:
        return [gr.skip() if values is None else values.get(name, gr.skip()) for name in FORM]

    def on_use(event: gr.EventData, request: gr.Request) -> list[Any]:
        session, act = session_of(request), _said(event, "act")
        if session is None or act not in ("use", "lock"):
            return fill(None)
        if act == "use":
            return fill(studio.use(session, _said(event, "id")))
        locked = {"seed": int(_said(event, "id")), "is_locked": True}
        return [locked.get(name, gr.skip()) for name in FORM]

    def on_settings(request: gr.Request) -> list[Any]:
        session = session_of(request)
        return fill(None if session is None or session.loaded is None else session.loaded.form)

    go.click(make, fields, form["seed"], **EVENT).then(**following)
    form["prompt"].submit(make, fields, form["seed"], **EVENT).then(**following)
    photo.click(on_photo, fields, [form["prompt"], photo], **EVENT).then(**following)
    view[1].click(on_photo, fields, [form["prompt"], photo], **EVENT).then(**following)
    photo.upload(show_photo, None, photo, **EVENT).then(show_settings, None, settings, **EVENT).then(**following)
    moves.click(on_move, form["prompt"], form["prompt"], **EVENT)
    form["prompt"].change(render.moves, form["prompt"], moves, **EVENT)
    settings.upload(on_settings, None, fields, **EVENT).then(show_settings, None, settings, **EVENT)
    for part in view[1:3]:
        part.click(on_use, None, fields, **EVENT).then(show_photo, None, photo, **EVENT)
    view[3].click(show_photo, None, photo, **EVENT)
    page.load(show_photo, None, photo, **EVENT).then(show_settings, None, settings, **EVENT)


def session_of(request: gr.Request) -> Session | None:
    return request.request.scope.get("studio_session")


def _shower(draw: Any) -> Any:
    def show(request: gr.Request) -> Any:
        session = session_of(request)
        return gr.skip() if session is None else draw(session)

    return show


def _said(event: gr.EventData, name: str) -> str:
    """A field of what the browser sent along, which may be anything, as short text."""
    data = event._data if isinstance(event._data, dict) else {}
    return str(data.get(name, ""))[:100]


def _lost(view: list[gr.HTML]) -> list[Any]:
    notice = f'<div class="notice" role="alert"><p>{ENDED}</p></div>'
    return [notice, *[gr.skip()] * (len(view) - 1)]


def _header(studio: Studio) -> str:
    name = studio.cascade.model_name.rstrip("/").rsplit("/", 1)[-1]
    return (
        "<header><h1>i2vgen <span>studio</span></h1>"
        f'<p class="model" title="the model that runs">{render.escape(name)}'
        f" · {render.escape(studio.cascade.vae.device.type)}</p>"
        '<button type="button" class="quiet" data-theme-switch aria-label="Light or dark">◐</button></header>'
    )


def _animate_form(studio: Studio):
    base = studio.cascade.base.options
    refine = studio.cascade.refiner.options if studio.has_refiner else None
    form: dict[str, Any] = {}
    photo = gr.HTML(elem_id="photo", js_on_load=BIND, apply_default_css=False)
    form["prompt"] = gr.Textbox(
        label="What happens",
        placeholder="a castle in autumn, the camera pans to the right",
        lines=2,
        max_lines=6,
        max_length=2000,
        elem_id="prompt",
        visible=studio.has_text,
        submit_btn=False,
    )
    moves = gr.HTML(
        render.moves(""), elem_id="moves", js_on_load=BIND, apply_default_css=False, visible=studio.has_text
    )
    with gr.Row(elem_id="counts"):
        form["num_takes"] = gr.Slider(1, MAX_TAKES, 4, step=1, label="Takes", min_width=150, elem_id="num-takes")
        form["shape"] = gr.Dropdown(list(SHAPES), value=AS_PHOTO, label="Shape", min_width=150, elem_id="shape")
    go = gr.Button("Make takes", variant="primary", elem_id="go")
    with gr.Accordion("More options", open=False, elem_id="more"):
        with gr.Row():
            form["seed"] = gr.Number(0, label="Seed of the first take", precision=0, minimum=0, min_width=140)
            form["is_locked"] = gr.Checkbox(False, label="Keep this seed", min_width=140, elem_id="keep-seed")
        form["preset"] = gr.Radio(
            [(f"{name.capitalize()}", name) for name in PRESETS],
            value=OWN_PRESET,
            label="Preset",
            info=". ".join(f"{name.capitalize()}: {preset.meaning}" for name, preset in PRESETS.items()) + ".",
        )
        with gr.Row():
            form["num_frames"] = gr.Number(base.num_frames, label="Frames", precision=0, minimum=1, min_width=110)
            form["target_fps"] = gr.Number(
                base.target_fps, label="Frames a second", precision=0, minimum=1, min_width=110
            )
            form["size"] = gr.Textbox(label="Exact size", placeholder="384x256", max_lines=1, min_width=110)
        form["negative_prompt"] = gr.Textbox(
            label="Keep away from",
            info="The negative prompt. It has an effect with guidance above 1.",
            placeholder=base.negative_prompt[:120],
            lines=1,
            max_length=2000,
            visible=studio.has_text,
        )
        with gr.Row():
            form["num_inference_steps"] = gr.Number(
                base.num_inference_steps, label="Steps", precision=0, minimum=1, min_width=110
            )
            form["guidance_scale"] = gr.Number(base.guidance_scale, label="Guidance", minimum=0, min_width=110)
        with gr.Row(visible=refine is not None):
            steps = None if refine is None else refine.num_inference_steps
            form["refine_steps"] = gr.Number(steps, label="Refinement steps", precision=0, minimum=1, min_width=110)
            form["refine_strength"] = gr.Number(
                _strength(refine), label="Refinement strength", step=0.05, min_width=110
            )
        form["fit"] = gr.Radio(
            [("Cut to the shape", "crop"), ("Show all, on black", "pad")], value="crop", label="Photo of another shape"
        )
    with gr.Accordion("Settings from a video", open=False, elem_id="load-settings"):
        settings = gr.HTML(elem_id="settings", js_on_load=BIND, apply_default_css=False)
    return form, photo, moves, settings, go


def _refine_form(studio: Studio):
    refine = studio.cascade.refiner.options
    footage = gr.HTML(elem_id="footage", js_on_load=BIND, apply_default_css=False)
    form = {
        "prompt": gr.Textbox(
            label="What is seen", placeholder="a lighthouse at dusk", lines=2, max_length=2000, elem_id="refine-prompt"
        )
    }
    with gr.Row():
        form["refine_strength"] = gr.Number(
            _strength(refine), label="Strength", info="above 0 to 1", step=0.05, min_width=110
        )
        form["size"] = gr.Textbox(label="Exact size", placeholder="as the video", info="such as 512x288", min_width=110)
    go = gr.Button("Refine video", variant="primary", elem_id="refine-go")
    with gr.Accordion("More options", open=False), gr.Row():
        form["refine_steps"] = gr.Number(
            refine.num_inference_steps, label="Steps", precision=0, minimum=1, min_width=110
        )
        form["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=110)
    return form, footage, go


def _strength(refine: Any) -> float | None:
    return None if refine is None else (refine.refine_timestep + 1) / 1000
