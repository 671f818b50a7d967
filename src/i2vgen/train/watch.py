"""What a run shows while it trains: a log of JSON lines, TensorBoard scalars, a progress bar, sample videos."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from i2vgen.media import contact_sheet, write_video
from i2vgen.train.workers import Workers

logger = logging.getLogger(__name__)
SAMPLE_FPS = 8


class Watch:
    """Only the first process writes; the others hold a `Watch` that does nothing."""

    def __init__(self, run_dir: Path, task: str, first_step: int, last_step: int, workers: Workers):
        self.run_dir, self.is_writing = run_dir, workers.is_first
        self.file = self.board = self.bar = None
        if not self.is_writing:
            return
        self.file = open(run_dir / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        self.board = _tensorboard(run_dir / "tensorboard")
        self.bar = tqdm(
            total=last_step, initial=first_step, desc=task, unit="step", dynamic_ncols=True, mininterval=2, disable=None
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if not self.is_writing:
            return
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name.replace("val_", "val/", 1), value, step)
        losses = {k: f"{v:.4f}" for k, v in values.items() if k in ("loss", "val_loss")}
        if losses:
            self.bar.set_postfix(losses)

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def videos(self, step: int, videos: dict[str, np.ndarray]) -> None:
        """`videos`: name -> uint8 (f h w 3)."""
        if not self.is_writing or not videos:
            return
        folder = self.run_dir / "samples" / f"step-{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, frames in videos.items():
            write_video(folder / f"{name}.mp4", frames, SAMPLE_FPS)
        sheet = contact_sheet(list(videos.values()), list(videos))
        sheet.save(folder / "sheet.png")
        if self.board is not None:
            self.board.add_image("samples", np.asarray(sheet.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        for part in (self.bar, self.file, self.board):
            if part is not None:
                part.close()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("no TensorBoard here (pip install tensorboard): the run is in log.jsonl alone")
        return None
    return SummaryWriter(str(folder))
