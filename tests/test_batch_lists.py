"""Lists of a batch: three forms give the same rows, and everything wrong is named by file, line and column."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

from i2vgen.batch import ListError, plan_items, read_list
from i2vgen.batch.lists import MAX_SHOWN
from i2vgen.batch.names import MAX_STEM_BYTES, automatic_stem, given_stem, slug


@pytest.fixture
def written(tmp_path):
    def write(content, name="shots.txt"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def said(path) -> list[str]:
    with pytest.raises(ListError) as caught:
        read_list(path)
    return [line.removeprefix(str(path)) for line in str(caught.value).split("\n")]


def test_three_forms_give_the_same_rows(written, tmp_path):
    text = written("# shots\n\na.jpg ||| a dog, running\n  b c.png|||\n")
    table = written('image,caption\n\n"a.jpg","a dog, running"\n#x,y\nb c.png,\n', "shots.csv")
    lines = written('{"image": "a.jpg", "prompt": "a dog, running"}\n#\n{"image": "b c.png"}\n', "shots.jsonl")
    expected = [(1, str(tmp_path / "a.jpg"), "a dog, running"), (2, str(tmp_path / "b c.png"), "")]
    for path, places in ((text, (3, 4)), (table, (3, 5)), (lines, (1, 3))):
        rows = read_list(path)
        assert [(row.number, row.image, row.prompt) for row in rows] == expected
        assert [row.place for row in rows] == [f"{path}:{line}" for line in places]
        assert all(row.options == {} and row.seed is None for row in rows)


def test_all_columns_arrive_alike_from_csv_and_jsonl(written):
    values = {
        "image": "a.jpg",
        "prompt": "p",
        "seed": 2**63 - 1,
        "repeats": 1,
        "output": "first.webp",
        "negative_prompt": "fog",
        "size": "448x256",
        "frames": 8,
        "fps": 12,
        "steps": 3,
        "guidance": 2.5,
        "fit": "pad",
        "exact": True,
        "refine": False,
        "refine_prompt": "sharp",
        "refine_steps": 4,
        "refine_strength": 0.5,
    }
    table = ";".join(values).replace("negative_prompt", "Negative-Prompt") + "\n" + ";".join(map(str, values.values()))
    (from_table,) = read_list(written(table, "a.csv"))
    (from_lines,) = read_list(written(json.dumps(values), "a.jsonl"))
    assert from_table.options == from_lines.options
    assert (from_table.seed, from_table.output, from_table.repeats) == (2**63 - 1, "first.webp", 1)
    assert from_table.options["size"] == (448, 256)
    assert from_table.options["refine"] is False
    assert from_table.options["guidance"] == 2.5
    assert set(values) == {"image", "prompt", "seed", "repeats", "output", *from_table.options}


def test_marks_and_line_ends_of_other_systems(written):
    for content in ("\ufeffa.jpg|||été\r\nb.jpg|||x\r\n", "a.jpg|||été\rb.jpg|||x"):
        assert [row.prompt for row in read_list(written(content))] == ["été", "x"]
    assert [row.prompt for row in read_list(written("\ufeffimage,prompt\r\na.jpg,é\r\n"))] == ["é"]
    assert said(written("a.jpg|||x\nb.jpg|||é".encode("latin-1"))) == [":2: not UTF-8 (byte 0xe9): save it as UTF-8"]
    assert said(written("a|||b".encode("utf-16"))) == [":1: it is UTF-16: save it as UTF-8"]


def test_a_quoted_cell_may_have_lines_and_the_place_is_its_first(written):
    path = written('image,prompt,steps\na.jpg,"two\nlines",2\nb.jpg,x,0\n', "a.csv")
    assert said(path) == [":4: steps '0': give a whole number from 1 to 1000000"]


def test_images_beside_the_list_come_before_those_of_the_working_directory(written, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for name in ("both.jpg", "here.jpg"):
        (elsewhere / name).touch()
    (tmp_path / "both.jpg").touch()
    path = written("both.jpg|||\nhere.jpg|||\nnone.jpg|||\nhttps://example.org/x.png|||\n/abs.jpg|||\n")
    expected = [tmp_path / "both.jpg", elsewhere / "here.jpg", tmp_path / "none.jpg"]
    assert [r.image for r in read_list(path)] == [*map(str, expected), "https://example.org/x.png", "/abs.jpg"]


def test_standard_input(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b'{"image": "a.jpg", "seed": 3}\n')))
    (row,) = read_list("-")
    assert (row.image, row.seed, row.place) == (str(tmp_path / "a.jpg"), 3, "standard input:1")


@pytest.mark.parametrize(
    "key, value, remedy",
    [
        ("stepps", 3, "did you mean 'steps'?"),
        ("negativ_prompt", "x", "did you mean 'negative_prompt'?"),
        ("zzz", 1, "use image, prompt"),
        ("steps", 0, "give a whole number from 1"),
        ("steps", 2.5, "give a whole number"),
        ("steps", True, "give a whole number"),
        ("steps", "9" * 40, "give a whole number"),
        ("seed", -1, "from 0 to 2^63 - 1"),
        ("seed", 2**63, "from 0 to 2^63 - 1"),
        ("seed", 1e300, "from 0 to 2^63 - 1"),
        ("guidance", "nan", "from 0 to 100"),
        ("guidance", [1], "give a number"),
        ("refine_strength", 0, "above 0"),
        ("repeats", 1001, "from 1 to 1000"),
        ("size", "wide", "such as 448x256"),
        ("size", [1, 2, 3], "such as 448x256"),
        ("fit", "stretch", "crop or pad"),
        ("refine", "perhaps", "true or false"),
        ("prompt", 7, "give text"),
        ("prompt", "a\0b", "control characters"),
        ("prompt", "\ud800", "half a character"),
        ("prompt", "x" * 20000, "shorten it"),
        ("image", "  ", "name a picture"),
        ("image", None, "image is missing"),
    ],
)
def test_bad_values_are_named(written, key, value, remedy):
    lines = said(written(json.dumps({"image": "a.jpg"} | {key: value}), "a.jsonl"))
    assert len(lines) == 1
    assert lines[0].startswith(":1: ")
    assert key in lines[0]
    assert remedy in lines[0]


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.txt", "a.jpg|||b\nonly text\n", ":2: no '|||': write image|||caption"),
        ("a.txt", "a.jpg|||b|||c\n", ":1: more than one '|||': write image|||caption"),
        ("a.txt", "|||text\n", ":1: image '': name a picture"),
        ("a.jsonl", '{"image": "a"}\n{"image": \n', ":2: not valid JSON"),
        ("a.jsonl", '["a.jpg"]\n', ":1: a JSON list"),
        ("a.jsonl", '{"image": "a", "image": "b"}\n', ":1: image is given twice"),
        ("a.jsonl", '{"image": "a", "prompt": "b", "caption": "c"}\n', ":1: prompt is given twice"),
        ("a.jsonl", '{"image": ' + "[" * 100_000, ":1: "),
        ("a.csv", "image,prompt\na.jpg,x,y\n", ":2: 3 cells where the header has 2"),
        ("a.csv", "image,prompt\na.jpg\n", ":2: 1 cells where the header has 2"),
        ("a.csv", "picture,prompt\na.jpg,x\n", ":1: unknown column 'picture'"),
        ("a.csv", "prompt,steps\nx,2\n", ":1: no column 'image'"),
        ("a.csv", "image,prompt,caption\nx,y,z\n", ":1: two columns for prompt"),
        ("a.csv", 'image,prompt\na.jpg,"never closed\n', ":2: not valid CSV"),
        ("a.txt", "# nothing\n\n", " has no rows"),
        ("a.csv", "image,prompt\n", " has no rows"),
    ],
)
def test_bad_lists_are_named(written, name, content, expected):
    assert said(written(content, name))[0].startswith(expected)


def test_everything_wrong_is_said_at_once(written):
    lines = said(written("".join(f"line {i}\n" for i in range(30))))
    assert len(lines) == MAX_SHOWN + 2
    assert lines[-2:] == ["and 18 more", "30 things to correct in the list; nothing was made"]
    with pytest.raises(ListError, match="cannot be read"):
        read_list("/none/at/all.txt")
    with pytest.raises(ListError, match="directory"):
        read_list("/")


# Seeds and names


def planned(written, lines, **arguments):
    return plan_items(read_list(written("\n".join(map(json.dumps, lines)), "a.jsonl")), **arguments)


def test_seeds_follow_the_stated_rule(written):
    rows = [{"image": "a"}, {"image": "b", "seed": 7}, {"image": "c", "repeats": 1}]
    items = planned(written, rows, seed=5, repeats=3)
    assert [item.seed for item in items] == [5, 6, 7, 7, 8, 9, 2005]
    assert [item.repeat for item in items] == [0, 1, 2, 0, 1, 2, 0]
    # More repeats, or other rows behind, change nothing in what was there
    more = planned(written, [*rows, {"image": "d"}], seed=5, repeats=4)
    assert {(i.output, i.seed) for i in items} < {(i.output, i.seed) for i in more}
    with pytest.raises(ListError, match=r"a.jsonl:1: seed 9223372036854775807 with 2 repeats"):
        planned(written, [{"image": "a", "seed": 2**63 - 1}], repeats=2)


def test_rows_overrule_the_defaults(written):
    items = planned(written, [{"image": "a", "steps": 9}, {"image": "b"}], defaults={"steps": 2, "size": "64x32"})
    assert [dict(item.options) for item in items] == [{"steps": s, "size": (64, 32)} for s in (9, 2)]
    with pytest.raises(ValueError, match="unknown option 'stepps'"):
        planned(written, [{"image": "a"}], defaults={"stepps": 2})


def test_names_are_stable_unique_and_plain(written):
    prompt = "../../etc: The CAMERA pans, à droite! " + "very " * 50
    rows = [{"image": "Ünïcode photo.JPG", "prompt": prompt}, {"image": "x/..", "prompt": "狗在跑"}, {"image": "a"}]
    names = [item.output for item in planned(written, [*rows, rows[0]], repeats=2)]
    assert len(set(names)) == 8
    assert names[0] == "0001-unicode-photo-etc-the-camera-pans-a-droite-very-very-very-very.mp4"
    assert names[1] == names[0].replace(".mp4", "-r2.mp4")
    assert "狗在跑" in names[2]
    assert all("/" not in name and len(name.encode()) < 140 for name in names)
    assert planned(written, rows, format="png")[0].output == names[0].removesuffix(".mp4")
    assert slug("--- ___") == ""
    assert len(automatic_stem(1, "a.jpg", "狗" * 500).encode()) <= MAX_STEM_BYTES


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/b.mp4", "a\\b", "..", ".hidden", ".mp4", "", " x", "x.", "CON", "nul.mp4", "com1.a.mp4"],
)
def test_names_that_are_not_possible_are_refused(written, name):
    with pytest.raises(ListError, match=r"a.jsonl:1: output"):
        planned(written, [{"image": "a", "output": name}])


@pytest.mark.parametrize("name", ["a:b", "a\tb", "a?.mp4", "two.dots.png", "x" * 121, "é" * 61])
def test_names_that_some_systems_refuse_are_refused(written, name):
    with pytest.raises(ListError, match=r"a.jsonl:1: output"):
        planned(written, [{"image": "a", "output": name}])


def test_given_names(written):
    assert given_stem("shot.v2", "mp4") == ("shot.v2", "mp4")
    assert given_stem("shot.WEBM", "mp4") == ("shot", "webm")
    items = planned(written, [{"image": "a", "output": "Shot.gif", "repeats": 2}, {"image": "a", "output": "b"}])
    assert [item.output for item in items] == ["Shot.gif", "Shot-r2.gif", "b.mp4"]
    with pytest.raises(ListError, match=r"a.jsonl:2: output 'SHOT.gif' is also that of .*a.jsonl:1"):
        planned(written, [{"image": "a", "output": "shot.gif"}, {"image": "a", "output": "SHOT.gif"}])
    with pytest.raises(ListError, match=r"'x-r2.mp4' is also that of"):
        planned(written, [{"image": "a", "output": "x-r2"}, {"image": "a", "output": "x", "repeats": 2}])
