"""Contact sheets."""

from __future__ import annotations

import numpy as np
import pytest

from i2vgen.media import MediaError, contact_sheet
from i2vgen.media.sheets import BACKGROUND, INK


def flat(colour, num_frames=8, height=20, width=40):
    return np.broadcast_to(np.array(colour, np.uint8), (num_frames, height, width, 3))


def count(sheet, colour):
    return int((np.asarray(sheet) == colour).all(-1).sum())


def test_each_video_has_its_frames():
    sheet = contact_sheet([flat((200, 0, 0)), flat((0, 0, 200), 2, 40, 20)], ["red", "blue"], 2, 3, 40)
    assert count(sheet, (200, 0, 0)) == 3 * 40 * 20
    assert count(sheet, (0, 0, 200)) == 2 * 20 * 40
    assert sheet.getpixel((0, 0)) == BACKGROUND


def test_first_and_last_frame_are_shown():
    video = np.zeros((5, 10, 10, 3), np.uint8)
    video[0], video[4] = (255, 0, 0), (0, 255, 0)
    sheet = contact_sheet([video], [""], frames_per_video=2, thumbnail_size=10)
    assert count(sheet, (255, 0, 0)) == count(sheet, (0, 255, 0)) == 100


def test_columns_and_rows():
    videos = [flat((9, 9, 9))] * 3
    one = contact_sheet(videos, ["a", "b", "c"], 1)
    two = contact_sheet(videos, ["a", "b", "c"], 2)
    wide = contact_sheet(videos, ["a", "b", "c"], 9)
    assert one.height > two.height > wide.height
    assert one.width < two.width < wide.width


def test_labels_are_drawn_and_long_ones_do_not_widen_the_sheet():
    plain = contact_sheet([flat((9, 9, 9))], [""])
    short = contact_sheet([flat((9, 9, 9))], ["A label"])
    long = contact_sheet([flat((9, 9, 9))], ["word " * 400])
    unbroken = contact_sheet([flat((9, 9, 9))], ["w" * 4000])
    assert count(plain, INK) == 0
    assert count(short, INK) > 20
    assert plain.width == short.width == long.width == unbroken.width
    assert plain.height < short.height < long.height
    assert unbroken.height == short.height


def test_bad_arguments():
    video = flat((9, 9, 9))
    for arguments, words in [
        (([], []), "videos is empty"),
        (([video], []), "labels has 0 entries for 1 videos"),
        (([video], ["a"], 0), "columns is 0"),
        (([video], ["a"], 1, 0), "frames_per_video is 0"),
        (([video / 255], ["a"]), r"videos\[0\] is float64"),
        (([video[0]], ["a"]), r"videos\[0\]"),
    ]:
        with pytest.raises(MediaError, match=words):
            contact_sheet(*arguments)
