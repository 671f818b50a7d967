"""The replay of golden folders: the bundled one passes, others of its layout do too, and nothing slips through."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from golden_recipe import GOLDEN
from golden_samplers import seeded
from i2vgen.parity.__main__ import main
from i2vgen.parity.calls import Call, ParityError, analytic_model, conditions, parse_calls
from i2vgen.parity.checks import absolute, elementwise, equal, relative
from i2vgen.parity.collect import collect_cases
from i2vgen.parity.networks import run_unet
from i2vgen.parity.recipe import Networks
from i2vgen.parity.report import OK, run_case
from i2vgen.schedulers import apply_guidance
from original_samplers import ddim, sdedit

GOLDEN_CASES = list(collect_cases(GOLDEN))
FORMULA = "v(x,t,y) = -0.2*tanh(x)*(1+0.3*y) + 0.02*t/1000   (t broadcast from [B], cast to x.dtype)"


@pytest.mark.parametrize("case", GOLDEN_CASES, ids=lambda case: f"{case.group}/{case.name}")
def test_the_original_is_reproduced(case):
    row = run_case(case, case.group)
    assert row.result == OK, row.line()


def test_bundled_cases_cover_every_group():
    groups = {case.group for case in GOLDEN_CASES}
    assert len(groups) == 10
    assert len(GOLDEN_CASES) == len({(case.group, case.name) for case in GOLDEN_CASES}) >= 30


# Other cases of the same layout, recorded here


class Recorder:
    """Writes a golden folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.networks = Networks([folder])

    def add(self, group: str, name: str, tensors: dict[str, torch.Tensor], **entry) -> None:
        (self.folder / group).mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, self.folder / group / f"{name}.safetensors")
        index = self.folder / group / "INDEX.json"
        content = json.loads(index.read_text()) if index.is_file() else {}
        listed = {k: [str(v.dtype).removeprefix("torch."), list(v.shape)] for k, v in tensors.items()}
        index.write_text(json.dumps(content | {name: {"tensors": listed, **entry}}))

    def add_network(self, name: str, cls: str, cases: dict[str, dict[str, torch.Tensor]], **kwargs) -> None:
        """Inputs in float16 as they are; the outputs are our own."""
        folder = self.folder / "tiny" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(
            json.dumps({"cls": cls, "kwargs": kwargs, "cases": {case: {} for case in cases}})
        )
        for case, inputs in cases.items():
            given = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
            with torch.no_grad():
                output = run_unet(self.networks.unet(name), given["x"], given["t"], given)
            save_file({**inputs, "output": output.contiguous()}, folder / f"{case}.safetensors")


SMALL = {
    "dim": 64, "dim_mult": [1, 2], "num_heads": 2, "head_dim": 8, "num_res_blocks": 1, "attn_scales": [0.5],
    "y_dim": 1024, "context_dim": 1024, "use_checkpoint": True, "default_fps": 8,
}  # fmt: skip


@pytest.fixture
def recorder(tmp_path) -> Recorder:
    return Recorder(tmp_path / "golden")


@pytest.fixture
def parity(capsys):
    """parity(folder, ...) -> exit code, rows by name, and what was printed."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        lines = [line for line in printed.out.splitlines()[1:-1] if line]
        rows = {"/".join(line.split()[:2]): line for line in lines}
        return code, rows, printed.out + printed.err

    return run


def tables() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """alphas_cumprod of both base schedules and the refiner's sigmas, as recorded."""
    read = lambda name, key: load_file(GOLDEN / "schedules" / f"{name}.safetensors")[key].double()  # noqa: E731
    return (
        read("vgen_cosine_zero_terminal_snr", "alphas_cumprod"),
        read("modelscope_linear_sd", "alphas_cumprod"),
        read("logsnr_cosine_interp", "modelscope_sigmas"),
    )


def guided_formula(fields: list[torch.Tensor], scale: float | None, rescale: float = 0.0):
    model = analytic_model(FORMULA)

    def predict(x, t):
        outputs = [model(x, t, y) for y in fields]
        return outputs[0] if scale is None else apply_guidance(*outputs, scale, rescale)

    return predict


@pytest.mark.parametrize(
    "steps, eta, scale, is_modelscope, dtype",
    [
        (30, 0.0, 9.0, False, torch.float64),
        (7, 1.0, None, False, torch.float32),
        (12, 0.35, 4.5, True, torch.float32),
        (25, 0.0, None, True, torch.float64),
    ],
)
def test_ddim_with_other_arguments_is_replayed(recorder, parity, steps, eta, scale, is_modelscope, dtype):
    start, fields = seeded(0).double(), [seeded(1).double(), seeded(2).double()][: 1 if scale is None else 2]
    noise = torch.stack([seeded(10 + i).double() for i in range(2 * steps)])
    acp = tables()[int(is_modelscope)]
    run = ddim(guided_formula(fields, scale), start, acp, steps, eta, iter(noise))
    named = {f"y_{i}": field for i, field in enumerate(fields)}
    tensors = {"start": start, "noise": noise[: len(run["t"])], **named, **run}
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    given = "{y:y_0}" if scale is None else "[{y:y_0},{y:y_1}]"
    diffusion = (
        "ModelScope GaussianDiffusion(linear_sd 0.00085..0.0120, v)" if is_modelscope else "VGen D(cosine, ztsnr, v)"
    )
    call = f"{diffusion}.ddim_sample_loop(noise=start, model, model_kwargs={given}, guide_scale={scale}, " + (
        f"ddim_timesteps={steps}, eta={eta}, clamp=None)"
    )
    recorder.add("samplers", "some_run", tensors, call=call, model=FORMULA)
    code, rows, printed = parity(recorder.folder)
    assert code == 0, printed
    assert ("1.0e-09" if dtype == torch.float64 else "1.0e-05") in rows["samplers/some_run"]


@pytest.mark.parametrize(
    "solver, steps, t_max, discretization, eta, scale, rescale",
    [
        ("heun", 5, 599, "trailing", 1.0, 7.5, 0.0),
        ("heun", 9, 899, "linspace", 1.0, 3.0, 0.7),
        ("heun", 4, 499, "leading", 1.0, 9.0, 0.2),
        ("dpmpp_2m_sde", 11, 799, "trailing", 0.4, 7.5, 1.0),
        ("dpmpp_2m_sde", 6, 699, "linspace", 1.0, 9.0, 0.3),
        ("dpmpp_2m_sde", 10, 599, "leading", 0.0, 2.0, 0.0),
    ],
)
def test_refining_with_other_arguments_is_replayed(
    recorder, parity, solver, steps, t_max, discretization, eta, scale, rescale
):
    x0, noise, fields = seeded(0).double(), seeded(1).double(), [seeded(2).double(), seeded(3).double()]
    sigmas = tables()[2]
    noised = (1 - sigmas[t_max] ** 2).sqrt() * x0 + sigmas[t_max] * noise
    draws = torch.stack([seeded(20 + i).double() for i in range(steps)])
    model = guided_formula(fields, scale, rescale)
    run = sdedit(model, noised, sigmas, solver, steps, t_max, discretization, eta, iter(draws))
    tensors = {"x0": x0, "noise": noise, "noised": noised, "y_cond": fields[0], "y_uncond": fields[1], **run}
    tensors |= {"sde_noise": draws[:-1]} if solver != "heun" else {}
    written = "" if eta == 1.0 else f", eta={eta}"
    call = (
        "ModelScope GaussianDiffusion_SDEdit(logsnr_cosine_interp sigmas, 'v').sample(noise=noised, model, "
        f"model_kwargs=[{{y:y_cond}},{{y:y_uncond}}], guide_scale={scale}, guide_rescale={rescale}, solver='{solver}', "
        f"steps={steps}, t_max={t_max}, t_min=0, discretization='{discretization}'{written})"
    )
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    recorder.add("samplers", "other_run", tensors, call=call, model=FORMULA)
    code, rows, printed = parity(recorder.folder)
    assert code == 0, printed
    assert "1.0e-05  ok" in rows["samplers/other_run"]


def test_networks_of_other_arguments_and_cascades_of_them_are_replayed(recorder, parity):
    def half(seed, *shape):
        return seeded(seed, shape).half()

    t = torch.tensor([700, 3])
    refiner = {"x": half(0, 2, 4, 3, 6, 8), "t": t, "y": half(1, 2, 5, 1024)}
    base = {
        "x": half(2, 2, 4, 1, 4, 8), "t": t, "y": half(3, 2, 5, 1024), "image": half(4, 2, 1, 1024),
        "local_image": half(5, 2, 4, 1, 4, 8), "fps": torch.tensor([4, 16]),
    }  # fmt: skip
    recorder.add_network("my_refiner", "Vid2VidSDUNet", {"case7": refiner}, **SMALL)
    without_image = {k: v for k, v in base.items() if k != "image"}
    recorder.add_network("my_base", "UNetSD_I2VGen", {"case5": base, "extra_x": without_image}, **SMALL)

    unet, acp = recorder.networks.unet("my_base"), tables()[0]
    given = {k: v.float() if v.is_floating_point() else v for k, v in base.items()} | {"y_other": half(6, 2, 5, 1024)}
    conds = [
        {n: given[n] for n in ("y", "image", "local_image", "fps")},
        {**given, "y": given["y_other"].float(), "image": torch.zeros_like(given["image"])},
    ]

    @torch.no_grad()
    def predict(x, t):
        outputs = [run_unet(unet, x.float(), torch.full((2,), t), given) for given in conds]
        return apply_guidance(*outputs, 2.5).double()

    run = ddim(predict, given["x"].double(), acp, 4, 0.0, iter([0.0] * 4))
    run = {k: v.float() if v.is_floating_point() else v for k, v in run.items()}
    kept = {k: v for k, v in given.items() if k not in ("x", "t")}
    call = (
        "VGen DiffusionDDIM(cosine ztsnr, v).ddim_sample_loop(noise=x_T, model, model_kwargs="
        "[{y:y,image,local_image,fps},{y:y_other,image:zeros,local_image,fps}], guide_scale=2.5, "
        "ddim_timesteps=4, eta=0.0); more words"
    )
    recorder.add("e2e_tiny", "four", {"x_T": given["x"], **kept, **run}, call=call, weights="recipe, my_base")
    code, rows, printed = parity(recorder.folder)
    assert code == 0, printed
    assert set(rows) == {"tiny/my_refiner/case7", "tiny/my_base/case5", "tiny/my_base/extra_x", "e2e_tiny/four"}


def test_a_parent_of_several_sets_is_replayed_set_by_set(tmp_path, parity):
    shutil.copytree(GOLDEN / "training", tmp_path / "open" / "training")
    shutil.copytree(GOLDEN / "training", tmp_path / "held" / "training")
    (tmp_path / "README.md").write_text("words")
    code, rows, _ = parity(tmp_path)
    assert code == 0
    assert set(rows) == {"held/training/loss_a", "open/training/loss_a"}
    code, rows, _ = parity(tmp_path, "--only", "held/*")
    assert set(rows) == {"held/training/loss_a"}


def test_a_set_may_refer_to_what_lies_beside_it(tmp_path, parity):
    shutil.copytree(GOLDEN / "diffusers_parity", tmp_path / "open" / "diffusers_parity")
    code, rows, _ = parity(tmp_path, "--only", "*/scheduler/ddim_vgen_5")
    assert code == 0
    assert "absent" in rows["open/diffusers_parity/scheduler/ddim_vgen_5"]
    shutil.copytree(GOLDEN / "samplers", tmp_path / "held" / "samplers")
    code, rows, _ = parity(tmp_path, "--only", "*/scheduler/ddim_vgen_5")
    assert code == 0
    assert "ok" in rows["open/diffusers_parity/scheduler/ddim_vgen_5"]


# Nothing that is wrong, missing or unknown passes


@pytest.fixture
def copied(tmp_path) -> Path:
    """A few groups of the bundled folder, to be damaged."""
    for group in ("samplers", "training", "preprocess"):
        shutil.copytree(GOLDEN / group, tmp_path / "golden" / group)
    shutil.copytree(GOLDEN / "tiny" / "modelscope_img2vid", tmp_path / "golden" / "tiny" / "modelscope_img2vid")
    return tmp_path / "golden"


def change(path: Path, name: str, value: float) -> None:
    tensors = load_file(path)
    tensors[name].view(-1)[5] = value
    save_file(tensors, path)


@pytest.mark.parametrize("value", [3.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "path, name, row",
    [
        ("samplers/ddim_vgen_5", "final", "samplers/ddim_vgen_5"),
        ("samplers/sdedit_dpmpp_8", "sde_noise", "samplers/sdedit_dpmpp_8"),
        ("samplers/sdedit_heun_6", "sigmas", "samplers/sdedit_heun_6"),
        ("samplers/sr600_10_inversion", "x", "samplers/sr600_10_inversion"),
        ("training/loss_a", "offset_noise", "training/loss_a"),
        ("preprocess/odd_448x256", "vae_input_every8", "preprocess/odd_448x256"),
    ],
)
def test_one_wrong_number_fails_that_row_alone(copied, parity, path, name, row, value):
    change(copied / f"{path}.safetensors", name, value)
    code, rows, printed = parity(copied, "--only", path.partition("/")[0])
    assert code == 1
    assert [name for name, line in rows.items() if "FAIL" in line] == [row], printed


def test_a_wrong_output_fails(copied, parity):
    change(copied / "tiny" / "modelscope_img2vid" / "case0.safetensors", "output", 0.5)
    code, rows, _ = parity(copied, "--only", "tiny")
    assert code == 1
    assert ["FAIL" in rows[f"tiny/modelscope_img2vid/{case}"] for case in ("case0", "case1")] == [True, False]


def test_one_wrong_pixel_fails(copied, parity):
    image = Image.open(copied / "preprocess" / "wide_448x256_clip.png").convert("RGB")
    image.putpixel((3, 4), tuple(min(255, level + 1) for level in image.getpixel((3, 4))))
    image.save(copied / "preprocess" / "wide_448x256_clip.png")
    code, rows, _ = parity(copied, "--only", "preprocess")
    assert code == 1
    assert "CLIP crop" in rows["preprocess/wide_448x256"]


def damage_missing(folder: Path) -> str:
    (folder / "samplers" / "ddim_vgen_5.safetensors").unlink()
    return "ddim_vgen_5.safetensors is missing"


def damage_truncated(folder: Path) -> str:
    path = folder / "samplers" / "ddim_vgen_5.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "ddim_vgen_5.safetensors cannot be read"


def damage_shape(folder: Path) -> str:
    path = folder / "samplers" / "ddim_vgen_5.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "final": tensors["final"][:, :3].contiguous()}, path)
    return "final has shape [1, 3, 3, 6, 5]"


def damage_extra_file(folder: Path) -> str:
    shutil.copy(folder / "samplers" / "ddim_vgen_5.safetensors", folder / "samplers" / "nameless.safetensors")
    return "no JSON beside this file"


def damage_unknown_group(folder: Path) -> str:
    (folder / "surprises").mkdir()
    return "unknown group"


def damage_index(folder: Path) -> str:
    (folder / "training" / "INDEX.json").write_text("{")
    return "INDEX.json in training/ cannot be read"


def damage_no_index(folder: Path) -> str:
    (folder / "training" / "INDEX.json").unlink()
    return "INDEX.json is missing in training/"


def damage_empty_group(folder: Path) -> str:
    (folder / "training" / "INDEX.json").write_text("{}")
    (folder / "training" / "loss_a.safetensors").unlink()
    return "the group holds no cases"


def damage_class(folder: Path) -> str:
    path = folder / "tiny" / "modelscope_img2vid" / "config.json"
    path.write_text(path.read_text().replace('"Img2VidSDUNet"', '"UNetSD_Unheard"', 1))
    return "cls: 'UNetSD_Unheard' is unknown; known: UNetSD_I2VGen"


def damage_call(folder: Path) -> str:
    path = folder / "samplers" / "INDEX.json"
    path.write_text(path.read_text().replace("steps=8,", "steps=8, s_churn=2.0,"))
    return "option s_churn=2.0 is not known"


def damage_solver(folder: Path) -> str:
    path = folder / "samplers" / "INDEX.json"
    path.write_text(path.read_text().replace("solver='heun', steps=6", "solver='euler', steps=6"))
    return "solver is 'euler'"


def damage_steps(folder: Path) -> str:
    path = folder / "samplers" / "INDEX.json"
    path.write_text(path.read_text().replace("ddim_timesteps=5,", "ddim_timesteps=6,"))
    return "t: 7 values, recorded 5"


@pytest.mark.parametrize("damage", [value for name, value in sorted(globals().items()) if name.startswith("damage_")])
def test_what_cannot_be_replayed_fails_and_says_why(copied, parity, damage):
    reason = damage(copied)
    if damage is not damage_class:
        shutil.rmtree(copied / "tiny")
    code, rows, printed = parity(copied)
    assert code == 1
    assert reason in printed
    assert any("FAIL" in line and reason in line for line in rows.values())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("{tmp}/absent",), "no such folder"),
        (("{tmp}/file",), "not a folder"),
        (("{tmp}",), "not a golden folder"),
        ((GOLDEN / "samplers",), "not a golden folder"),
        ((GOLDEN, "--only", "samplers/nothing*"), "no case matches 'samplers/nothing*'"),
        ((GOLDEN, "--json", "{tmp}/no/where.json"), "a folder that exists"),
    ],
)
def test_bad_usage_is_code_2(tmp_path, parity, arguments, words):
    (tmp_path / "file").write_text("x")
    code, _, printed = parity(*(str(argument).format(tmp=tmp_path) for argument in arguments))
    assert code == 2
    assert words in printed


def test_the_table_is_written_for_docs_and_programs(copied, parity, tmp_path):
    change(copied / "samplers" / "ddim_vgen_5.safetensors", "final", float("nan"))
    code, _, printed = parity(
        copied, "--only", "samplers", "--json", tmp_path / "r.json", "--markdown", tmp_path / "r.md"
    )
    assert code == 1
    content = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    rows = {row["case"]: row for row in content["cases"]}
    assert rows["ddim_vgen_5"]["result"] == "FAIL"
    assert rows["ddim_vgen_5"]["error"] == "nan"
    assert rows["sdedit_heun_6"]["error"] <= rows["sdedit_heun_6"]["tolerance"] == 1e-5
    assert content["total"] in printed
    table = (tmp_path / "r.md").read_text().splitlines()
    assert len(table) == len(rows) + 4
    assert table[-1] == f"{len(rows) - 1} of {len(rows)} cases pass."


# Reading calls


def test_calls_are_read_with_all_their_arguments():
    text = (
        "VGen SR: a.invert(x0, model, {y:y_u}, steps=4) then b.sample(..., [{y:c, fps},{y:zeros,fps}], "
        "guide_scale=9.0, solver='a, (b', noise=diffuse(x0,599,n), eta=1e-1, clamp=None) (float32)"
    )
    invert, sample = parse_calls(text)
    assert invert == Call("a.invert", ("x0", "model", "{y:y_u}"), {"steps": 4})
    assert sample.method == "sample"
    assert sample.options == {
        "guide_scale": 9.0, "solver": "a, (b", "noise": "diffuse(x0,599,n)", "eta": 0.1, "clamp": None,
    }  # fmt: skip
    assert conditions(sample) == [{"y": "c", "fps": "fps"}, {"y": "zeros", "fps": "fps"}]
    assert sample.take({"guide_scale": None, "solver": "", "noise": "", "eta": 0.0, "steps": 20})["steps"] == 20


@pytest.mark.parametrize("text", ["f(a", "f(a]", "f('a)", "f([a)]"])
def test_unbalanced_calls_are_errors(text):
    with pytest.raises(ParityError, match="call"):
        parse_calls(text)


def test_formulas_compute_and_run_no_code():
    x, y = torch.tensor([[0.5], [1.0]]), torch.tensor([[2.0], [3.0]])
    value = analytic_model("v(x,t,y) = -tanh(x)**2*y + t/4 (words that say more)")(x, torch.tensor([4, 8]), y)
    torch.testing.assert_close(value, -(torch.tanh(x) ** 2) * y + torch.tensor([[1.0], [2.0]]))
    for text in ("v = __import__('os')", "v = x.data", "v = open(x)", "v = 'a'*9", "v ="):
        with pytest.raises(ParityError, match="model"):
            analytic_model(text)(x, 1, y)


def test_measures_of_error():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    assert absolute("x", a, b, 0.5).is_ok
    assert not absolute("x", a, b, 0.4).is_ok
    assert relative("x", a, a, 0.0).error == 0
    assert elementwise("x", a, b, 1.0).error == pytest.approx(0.2)
    inf = torch.tensor([float("inf"), 0.0])
    assert elementwise("x", inf, inf, 0.0).is_ok
    for bad in (torch.tensor([float("nan"), 2.0]), torch.zeros(3)):
        for measure in (absolute, relative, elementwise):
            assert not measure("x", bad, a, 1e9).is_ok
            assert not measure("x", a, bad, 1e9).is_ok
    assert not equal("x", [1, 2], [1]).is_ok
