"""`i2vgen preview` and `i2vgen again`: what they make is what `generate` and `refine` make."""

from __future__ import annotations

import json
import shlex

from i2vgen.media import load_video, read_settings, write_video


def frames_of(path):
    return load_video(path).frames


def test_preview_gives_the_base_motion_of_generate(run, generate, tmp_path, photo_path, tiny_cascade_dir):
    model = ("--model", tiny_cascade_dir, "--device", "cpu")
    folder = tmp_path / "previews"
    result = run(
        "preview", photo_path, "a dog's run", "--seeds", 2, "--first-seed", 3, "-o", folder, "--format", "webp", *model
    )
    assert result.code == 0, result.err
    assert sorted(p.name for p in folder.iterdir()) == ["contact-sheet.png", "seed-00003.webp", "seed-00004.webp"]
    assert generate(tmp_path / "b.webp", "--no-refine", "--seed", 4, prompt="a dog's run").code == 0
    assert (frames_of(folder / "seed-00004.webp") == frames_of(tmp_path / "b.webp")).all()
    assert not (frames_of(folder / "seed-00003.webp") == frames_of(tmp_path / "b.webp")).all()

    command = shlex.split(result.out.strip().splitlines()[-1])
    assert command[:5] == ["i2vgen", "generate", str(photo_path), "a dog's run", "-o"]
    command[5] = str(tmp_path / "full.webp")
    assert run(*command[1:]).code == 0
    settings, previewed = read_settings(tmp_path / "full.webp"), read_settings(folder / "seed-00003.webp")
    assert (settings["seed"], settings["base"]) == (3, previewed["base"])
    again = run("preview", photo_path, "", "-o", folder, "--seeds", 2, "--first-seed", 3, "--format", "webp", *model)
    assert again.code == 2


def test_preview_takes_the_size_of_the_final_video(run, tmp_path, photo_path, tiny_cascade_dir):
    model = ("--model", tiny_cascade_dir, "--device", "cpu", "--steps", 1)
    result = run("preview", photo_path, "", "-o", tmp_path / "p", "--seeds", 1, "--size", "192x96", "--json", *model)
    document = json.loads(result.out)
    assert [(c["seed"], c["width"], c["height"]) for c in document["clips"]] == [(0, 128, 64)]
    assert "--size 192x96 --model" in document["next"]


def test_again_repeats_a_generation_frame_by_frame(run, generate, tmp_path, photo, tiny_cascade_dir):
    picture = tmp_path / "p.png"
    photo.save(picture)
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    options = "--seed 9 --size 108x88 --steps 1 --refine-steps 1 --refine-strength 0.4 --fit pad"
    assert generate(first, *options.split(), "--negative-prompt", "fog", image=picture).code == 0
    result = run("again", first, "-o", second)
    assert (result.code, result.err) == (0, "")
    assert (frames_of(second) == frames_of(first)).all()
    assert read_settings(second) == read_settings(first)

    assert run("again", first, "-o", tmp_path / "c.png", "--seed", 10).code == 0
    assert not (frames_of(tmp_path / "c.png") == frames_of(first)).all()

    moved = picture.rename(tmp_path / "q.png")
    gone = run("again", first, "-o", tmp_path / "d.png")
    assert gone.code == 2
    assert "--image PATH" in gone.err
    assert run("again", first, "-o", tmp_path / "d.png", "--image", moved).code == 0
    photo.rotate(180).save(picture)
    other = run("again", first, "-o", tmp_path / "e.png")
    assert other.code == 2
    assert "its pixels differ" in other.err


def test_again_repeats_a_refinement(run, tmp_path, clip, tiny_cascade_dir, photo_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    options = ("--model", tiny_cascade_dir, "--device", "cpu", "--strength", 0.5, "--seed", 2, "--steps", 1)
    assert run("refine", clip, "a gradient", "-o", first, "--frames", 3, "--image", photo_path, *options).code == 0
    result = run("again", first, "-o", second)
    assert (result.code, result.err) == (0, "")
    assert (frames_of(second) == frames_of(first)).all()
    moved = clip.rename(tmp_path / "moved.webp")
    assert run("again", first, "-o", second, "--force").code == 2
    assert run("again", first, "-o", second, "--force", "--video", moved).code == 0


def test_again_warns_of_other_versions_and_refuses_other_kinds(run, generate, tmp_path):
    assert generate(tmp_path / "a.webp", "--no-refine", "--steps", 1).code == 0
    settings, frames = read_settings(tmp_path / "a.webp"), frames_of(tmp_path / "a.webp")
    settings["versions"]["torch"] = "1.0"
    write_video(tmp_path / "old.webp", frames, 8, settings=settings)
    result = run("again", tmp_path / "old.webp", "-o", tmp_path / "new.webp")
    assert result.code == 0
    assert "warning: frames may differ a little: torch 1.0 then" in result.err
    for change, said in (
        ({"kind": "dream"}, "kind 'dream'"),
        ({"seed": "x"}, "seed = 'x'"),
        ({"base": settings["base"] | {"flow": 1}}, "base.flow"),
    ):
        write_video(tmp_path / "odd.webp", frames, 8, settings=settings | change)
        result = run("again", tmp_path / "odd.webp", "-o", tmp_path / "x.webp")
        assert result.code == 2
        assert said in result.err
