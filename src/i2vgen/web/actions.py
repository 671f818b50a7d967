"""What a click on the page does to a session; plain Python, without Gradio."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from i2vgen.batch.fields import parse_size
from i2vgen.web.jobs import Job, Line
from i2vgen.web.making import refine_take_job, refine_video_job, takes_job
from i2vgen.web.sentences import sentence_of
from i2vgen.web.sessions import Loaded, Result, Session, Takes
from i2vgen.web.uploads import EXAMPLES, photo_of, take_photo
from i2vgen.web.wishes import MAX_SIDE, MAX_STEPS, form_of_settings, read_number, read_text, read_whole, read_wish

if TYPE_CHECKING:
    from i2vgen.pipelines import CascadePipeline


class Studio:
    """A loaded model, the line before it, and what can be asked of it in the name of a session.

    Errors become the session's notice, a sentence; nothing is raised for what a visitor gets wrong.
    """

    def __init__(self, cascade: CascadePipeline, flags: dict[str, str] | None = None):
        self.cascade, self.line, self.flags = cascade, Line(), dict(flags or {})

    @property
    def has_base(self) -> bool:
        return self.cascade.base is not None

    @property
    def has_refiner(self) -> bool:
        return self.cascade.refiner is not None

    @property
    def has_text(self) -> bool:
        return self.cascade.text_encoder is not None

    def make_takes(self, session: Session, form: dict[str, Any]) -> int | None:
        """Start takes of the session's photo. Returns the first seed, None if it was not started."""

        def start() -> int:
            if session.photo is None:
                raise ValueError("There is no photo yet: drop one, or try an example.")
            wish = read_wish(form if self.has_text else form | {"prompt": "", "negative_prompt": ""})
            self._submit(session, takes_job(session, self.cascade, wish, session.photo, self.flags))
            return wish.seed

        return self._try(session, start)

    def choose_example(self, session: Session, key: str) -> str | None:
        """Take an example's photo. Returns its prompt."""

        def choose() -> str:
            example = EXAMPLES.get(key)
            if example is None:
                raise ValueError("There is no such example.")
            take_photo(session, example.path, example.path.name)
            return example.prompt

        return self._try(session, choose)

    def pick(self, session: Session, index: str) -> None:
        takes = session.takes
        if takes is not None and index.isdigit() and int(index) < len(takes.clips) and takes.clips[int(index)]:
            takes.picked = None if takes.picked == int(index) else int(index)
            session.changed()

    def refine_pick(self, session: Session) -> None:
        """Refine the take that is picked."""

        def start() -> None:
            takes = session.takes
            if takes is None or takes.picked is None:
                raise ValueError("Choose a take first.")
            self._submit(session, refine_take_job(session, self.cascade, takes, takes.picked, self.flags))

        self._try(session, start)

    def refine_footage(self, session: Session, form: dict[str, Any]) -> None:
        """Refine the video that the session was given."""

        def start() -> None:
            if session.footage is None:
                raise ValueError("There is no video yet: drop one.")
            text = (form.get("size") or "").strip()
            size = parse_size(text) if text else None
            if size is not None and max(size) > MAX_SIDE:
                raise ValueError(f"Size {text}: a side may have at most {MAX_SIDE} pixels.")
            job = refine_video_job(
                session,
                self.cascade,
                session.footage,
                read_text(form.get("prompt"), "The prompt"),
                read_whole(form.get("seed"), "The seed", 0, 2**53, 0),
                size,
                read_whole(form.get("refine_steps"), "Refinement steps", 1, MAX_STEPS),
                read_number(form.get("refine_strength"), "Refinement strength", 0.01, 1),
            )
            self._submit(session, job)

        self._try(session, start)

    def cancel(self, session: Session) -> None:
        if session.job is not None:
            self.line.cancel(session.job)
            session.changed()

    def dismiss(self, session: Session) -> None:
        session.notice = ""
        session.changed()

    def open(self, session: Session, key: str) -> None:
        """Show something of the history again."""
        entry = session.find(key)
        if isinstance(entry, Result):
            session.result = entry
        elif isinstance(entry, Takes):
            session.takes, session.result = entry, None
        session.changed()

    def clear(self, session: Session) -> None:
        """Forget all of a session; what is being made is cancelled first."""
        self.cancel(session)
        deadline = time.monotonic() + 60
        while session.job is not None and session.job.is_active and time.monotonic() < deadline:
            time.sleep(0.05)
        session.forget_all()

    def use(self, session: Session, place: str) -> dict[str, Any] | None:
        """The form's values for something made here, "key" of a result or "key/index" of a take."""
        key, _, index = place.partition("/")
        entry = session.find(key)
        if isinstance(entry, Result):
            settings = entry.clip.settings
        elif isinstance(entry, Takes) and index.isdigit() and int(index) < len(entry.clips):
            settings, session.photo = entry.clips[int(index)].settings, entry.photo
        else:
            return None
        session.loaded = Loaded("this video", self.form_of(settings), photo_of(settings))
        return session.loaded.form

    def form_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        if not self.has_base:
            raise ValueError("This studio has a refiner alone: it cannot animate photos.")
        return form_of_settings(settings, self.cascade)

    def finish(self, session: Session) -> None:
        """Take note of how the session's job ended."""
        job = session.job
        if job is not None and not job.is_active:
            session.notice = job.error
            session.job = None
            session.changed()

    def _submit(self, session: Session, job: Job) -> None:
        self.line.add(job)
        session.job, session.notice = job, ""
        session.changed()

    def _try(self, session: Session, what: Any) -> Any:
        try:
            return what()
        except Exception as error:
            session.notice = sentence_of(error)
            session.changed()
            if not isinstance(error, ValueError):
                raise
        return None


def new_cookie_name() -> str:
    """Cookies do not know ports: each studio on a machine needs a name of its own."""
    return f"i2vgen_studio_{secrets.token_hex(4)}"
