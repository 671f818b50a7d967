"""Errors as a sentence that a person at a page understands: no option names, no tracebacks."""

from __future__ import annotations

import re

# What a command would say -> what the page calls it.
PAGE_WORDS = (
    (r"use a smaller --size or fewer --frames", "choose a smaller size or fewer frames"),
    (r"choose another --model|add --no-refine", "start the studio with another model"),
    (r"--(\w[\w-]*)", lambda match: match.group(1).replace("-", " ")),
    (r"\bnum_frames\b", "the number of frames"),
    (r"\bnum_inference_steps\b", "the number of steps"),
    (r"\btarget_fps\b", "frames a second"),
    (r"\bguidance_scale\b", "guidance"),
    (r"\brefine_steps\b", "refinement steps"),
    (r"\brefine_strength\b", "refinement strength"),
    (r"\bmax_pixels(_total)?\b", "the most that is read"),
)
# A folder of the server's says nothing to the visitor: only the name of the file is kept.
FOLDERS = re.compile(r"(?:/[^\s/'\"]+)+/([^\s/'\"]+)")


def sentence_of(error: BaseException) -> str:
    """What went wrong and what to do, in one sentence with a capital and a full stop."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return "The machine ran out of memory: choose a smaller size or fewer frames."
    is_ours = isinstance(error, ValueError) or type(error).__module__.startswith("i2vgen.")
    if not is_ours and isinstance(error, OSError):
        return f"The file could not be read or written ({error.strerror or type(error).__name__}): is the disk full?"
    if not is_ours or not text:
        return f"Something inside the studio failed ({type(error).__name__}): the terminal it runs in says where."
    for pattern, words in PAGE_WORDS:
        text = re.sub(pattern, words, text)
    text = FOLDERS.sub(r"\1", text)
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
