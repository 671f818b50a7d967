"""The studio in a real browser, with nano: the whole flow, and that no request leaves the machine."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

# A machine may be slow, and shared.
PATIENCE = 300_000
PICTURES = os.environ.get("STUDIO_PICTURES")  # a folder: the docs' pictures are written there


@pytest.fixture(scope="module")
def address():
    """A studio with nano, in this process."""
    import uvicorn

    from i2vgen.cli.sources import open_cascade
    from i2vgen.web.actions import Studio
    from i2vgen.web.app import build_app
    from i2vgen.web.sessions import Sessions

    studio, sessions = Studio(open_cascade("nano", "cpu", "float32"), {"model": "nano"}), Sessions()
    server = uvicorn.Server(
        uvicorn.Config(build_app(studio, sessions), log_level="warning", timeout_graceful_shutdown=2)
    )
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)
    studio.line.close()
    sessions.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class Visitor:
    """A browser context with everything recorded that it asks for or complains of."""

    def __init__(self, browser, address, **context):
        self.context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.asked, self.complaints = [], []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.goto(address)
        self.page.wait_for_selector("#photo .drop, #footage .drop")

    def picture(self, name):
        if PICTURES:
            self.page.wait_for_timeout(900)
            self.page.screenshot(path=str(Path(PICTURES) / f"studio-{name}.jpg"), type="jpeg", quality=86)

    def wait_idle(self):
        self.page.wait_for_selector(".progress", state="detached")

    def foreign(self):
        hosts = {urlparse(url).hostname for url in self.asked if not url.startswith(("data:", "blob:"))}
        return hosts - {"127.0.0.1"}


def test_whole_flow(browser, address, tmp_path):
    visitor = Visitor(browser, address, accept_downloads=True)
    page = visitor.page
    visitor.picture("start")

    # 1. A photo from the disk, a move by button, takes that come one after the other
    photo = Path(__file__).parent.parent / "examples" / "castle.jpg"
    page.set_input_files('input[data-upload="photo"]', str(photo))
    page.wait_for_selector("#photo .has-file img")
    page.fill("#prompt textarea", "a castle in the mountains")
    page.click('[data-act="move"][data-id="pan-right"]')
    page.wait_for_selector('[data-id="pan-right"][aria-pressed="true"]')
    assert page.input_value("#prompt textarea") == "a castle in the mountains, the camera pans to the right"
    page.click("#go")
    page.wait_for_selector(".progress, .notice")
    page.wait_for_selector("button.take")
    assert page.locator(".take.is-coming").count() == 3, "takes come in one by one"
    visitor.picture("takes")
    visitor.wait_idle()
    assert page.locator("button.take").count() == 4

    # 2. Pick one by keyboard, refine it, compare
    page.locator("button.take").nth(2).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector('.take[aria-pressed="true"]')
    visitor.picture("picked")
    page.click('[data-act="refine"]')
    page.wait_for_selector(".compare")
    visitor.wait_idle()
    page.wait_for_function("[...document.querySelectorAll('.compare video')].every(v => v.readyState >= 2)")
    sizes = page.evaluate("[...document.querySelectorAll('.compare video')].map(v => [v.videoWidth, v.videoHeight])")
    assert sizes == [[384, 256], [192, 128]]
    slider = page.locator(".compare input")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('.compare').style.getPropertyValue('--at')") == "60%"
    page.evaluate("document.activeElement.blur()")
    visitor.picture("compare")

    # 3. Settings are seen; both files come down, with the settings inside
    page.click("#result summary")
    page.wait_for_selector("#result dl")
    visitor.picture("settings")
    from i2vgen.media import load_video, read_settings

    files = []
    for kind in ("MP4", "GIF"):
        with page.expect_download() as download:
            page.click(f"#result a:has-text('{kind}')")
        files.append(tmp_path / download.value.suggested_filename)
        download.value.save_as(files[-1])
        assert read_settings(files[-1])["prompt"].endswith("pans to the right")
        assert load_video(files[-1]).frames.shape == (16, 256, 384, 3)
    assert read_settings(files[0])["image"]["path"] == "castle.jpg", "no path of this machine"

    # 4. Load them back from the file into a form that was changed
    seed = read_settings(files[0])["seed"]
    page.fill("#prompt textarea", "something else")
    page.click("#load-settings button")
    page.set_input_files('input[data-upload="settings"]', str(files[0]))
    page.wait_for_selector("#settings .hint")
    assert "The photo is the same" in page.inner_text("#settings .hint")
    assert page.input_value("#prompt textarea") == "a castle in the mountains, the camera pans to the right"
    page.click("#more button")
    assert page.locator("#keep-seed input").is_checked()
    assert page.get_by_label("Seed of the first take").input_value() == str(seed)
    visitor.picture("options")

    # 5. A reload keeps the session
    page.reload()
    page.wait_for_selector(".past")
    assert page.locator(".past").count() == 2
    assert visitor.foreign() == set()
    assert visitor.complaints == []


def test_example_cancel_and_errors(browser, address, tmp_path):
    visitor = Visitor(browser, address, color_scheme="dark")
    page = visitor.page
    assert page.evaluate("document.body.classList.contains('dark')")

    # 1. No photo; a file that is no picture
    page.click("#go")
    assert "no photo yet" in page.inner_text("#status .notice")
    page.click('[data-act="dismiss"]')
    page.wait_for_selector(".notice", state="detached")
    (tmp_path / "note.jpg").write_text("hello")
    page.set_input_files('input[data-upload="photo"]', str(tmp_path / "note.jpg"))
    page.wait_for_selector("#photo .upload-error:visible")
    assert page.inner_text("#photo .upload-error").startswith("'note.jpg' is not a picture")

    # 2. An example works at one click; what runs is cancelled within a step
    page.click('[data-act="example"][data-id="balloon"]')
    page.wait_for_selector("button.take")
    begun = time.monotonic()
    page.click('[data-act="cancel"]')
    visitor.wait_idle()
    took = time.monotonic() - begun
    assert page.locator("button.take").count() in (1, 2), f"cancelled after {took:.1f} s"
    visitor.picture("dark")
    assert visitor.foreign() == set()
    # The one refused upload is all that the browser reports.
    assert [text for text in visitor.complaints if "400" not in text] == []


def test_phone_refines_a_video(browser, address, tmp_path):
    visitor = Visitor(
        browser, address, viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True, has_touch=True
    )
    page = visitor.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing hangs over"
    visitor.picture("phone")
    page.tap('button[role="tab"]:has-text("Refine a video")')
    page.set_input_files('input[data-upload="video"]', str(small_video(tmp_path / "clip.mp4")))
    page.wait_for_selector("#footage .has-file")
    page.fill("#refine-prompt textarea", "a memorial at dusk")
    page.tap("#refine-go")
    page.wait_for_selector(".compare, .notice")
    assert page.locator(".notice").count() == 0
    visitor.wait_idle()
    page.locator(".compare").scroll_into_view_if_needed()
    page.evaluate("document.activeElement.blur()")
    visitor.picture("phone-refined")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visitor.foreign() == set()
    assert visitor.complaints == []


def small_video(path):
    import numpy as np
    from PIL import Image

    from i2vgen.media import write_video

    photo = Image.open(Path(__file__).parent.parent / "examples" / "memorial.jpg").convert("RGB").resize((240, 128))
    whole = np.asarray(photo)
    frames = np.stack([whole[:, 4 * i : 4 * i + 192] for i in range(8)])
    return write_video(path, frames, 8)
