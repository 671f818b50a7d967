"""Schedules and samplers against numbers of the original code, and the properties that any sampler has."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from i2vgen.schedulers import (
    I2VGenDDIMScheduler,
    VideoRefineScheduler,
    alphas_cumprod_from_betas,
    alphas_from_sigmas,
    apply_guidance,
    cosine_betas,
    linear_sd_betas,
    logsnr_cosine_interp_sigmas,
    rescale_zero_terminal_snr,
    sigmas_from_betas,
)

GOLDEN = Path(__file__).parent / "golden"
SAMPLER_CASES = json.loads((GOLDEN / "samplers" / "INDEX.json").read_text())["cases"]
SHAPE = (2, 4, 3, 6, 5)


def cases_with(call_part: str) -> list[str]:
    return [name for name, case in SAMPLER_CASES.items() if call_part in case["call"]]


def argument(name: str, key: str, default: float | None = None) -> float | None:
    found = re.search(rf"\b{key}=([\d.]+)", SAMPLER_CASES[name]["call"])
    return float(found[1]) if found else default


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


def analytic_model(x: torch.Tensor, t: int | torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.3 * torch.tanh(x) * (1 + 0.1 * y) + 0.01 * int(t) / 1000


def guided(name: str, golden: dict[str, torch.Tensor], x: torch.Tensor, t: int | torch.Tensor):
    scale = argument(name, "guide_scale")
    if scale is None:
        return analytic_model(x, t, golden["y_cond"] if "y_cond" in golden else golden["y"])
    cond, uncond = (analytic_model(x, t, golden[key]) for key in ("y_cond", "y_uncond"))
    return apply_guidance(cond, uncond, scale, argument(name, "guide_rescale", 0.0))


def perfect_velocity(scheduler, x0: torch.Tensor, x: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
    """The v from which a sampler at x and t reads exactly x0."""
    alpha, sigma = scheduler.alphas[int(t)].item(), scheduler.sigmas[int(t)].item()
    return (alpha * x - x0) / sigma


def seeded(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Schedules


@pytest.mark.parametrize(
    "name, betas",
    [
        ("vgen_cosine_plain", cosine_betas()),
        ("vgen_cosine_zero_terminal_snr", rescale_zero_terminal_snr(cosine_betas())),
        ("modelscope_linear_sd", linear_sd_betas()),
    ],
)
def test_betas_equal_the_original(name, betas):
    golden = load_file(GOLDEN / "schedules" / f"{name}.safetensors")
    torch.testing.assert_close(betas, golden["betas"], rtol=1e-9, atol=0)
    torch.testing.assert_close(alphas_cumprod_from_betas(betas), golden["alphas_cumprod"], rtol=1e-9, atol=0)


def test_refiner_sigmas_equal_the_original():
    golden = load_file(GOLDEN / "schedules" / "logsnr_cosine_interp.safetensors")
    sigmas = logsnr_cosine_interp_sigmas()
    alphas, expected = alphas_from_sigmas(sigmas), golden["modelscope_alphas"]
    torch.testing.assert_close(sigmas, golden["modelscope_sigmas"], rtol=1e-6, atol=0)
    torch.testing.assert_close(alphas[:600], expected[:600], rtol=5e-6, atol=0)
    torch.testing.assert_close(alphas[:901], expected[:901], rtol=1e-4, atol=0)
    assert sigmas[-1] == 1.0
    assert alphas[-1] == 0.0
    assert (sigmas[1:] > sigmas[:-1]).all()


def test_refiner_schedule_ends_in_pure_noise_for_any_scale():
    assert logsnr_cosine_interp_sigmas(100, scale_min=0.5, scale_max=0.5)[-1] == 1.0


def test_inversion_sigmas_equal_the_original():
    golden = load_file(GOLDEN / "schedules" / "vgen_sr_reverse_cosine.safetensors")
    sigmas = sigmas_from_betas(cosine_betas())
    torch.testing.assert_close(sigmas, golden["sigma_schedule"], rtol=1e-9, atol=0)
    torch.testing.assert_close(alphas_from_sigmas(sigmas).float(), golden["alphas"], rtol=1e-6, atol=0)


# Samplers against the original


@pytest.mark.parametrize("name", cases_with("ddim_sample_loop"))
def test_ddim_replays_the_original(name):
    golden = load_file(GOLDEN / "samplers" / f"{name}.safetensors")
    is_image2video = "linear_sd" in SAMPLER_CASES[name]["call"]
    scheduler = I2VGenDDIMScheduler(
        beta_schedule="linear_sd" if is_image2video else "cosine", rescale_betas_zero_snr=not is_image2video
    )
    scheduler.set_timesteps(int(argument(name, "ddim_timesteps")))
    assert scheduler.timesteps.tolist() == golden["t"][:, 0].tolist()
    eta = argument(name, "eta")
    x = golden["x_T"]
    for i, t in enumerate(scheduler.timesteps):
        assert relative(x, golden["x"][i]) < 1e-5
        noise = golden["noise"][i] if eta > 0 else None
        x = scheduler.step(guided(name, golden, x, t), t, x, eta=eta, variance_noise=noise).prev_sample
    assert relative(x, golden["final"]) < 1e-5


@pytest.mark.parametrize("name", cases_with("ddim_reverse_sample_loop"))
def test_inversion_replays_the_original(name):
    golden = load_file(GOLDEN / "samplers" / f"{name}.safetensors")
    levels = argument(name, "reverse_steps")
    scheduler = I2VGenDDIMScheduler(rescale_betas_zero_snr=levels is None)
    pairs = scheduler.inversion_timesteps(
        int(argument(name, "ddim_timesteps")), None if levels is None else int(levels) - 1
    )
    assert [t for t, _ in pairs] == golden["t"][:, 0].tolist()
    x = golden["x"][0]
    for i, (t, next_t) in enumerate(pairs):
        x = scheduler.invert_step(guided(name, golden, x, t), t, next_t, x)
        assert relative(x, golden["x"][i + 1]) < 1e-5
    assert relative(x, golden["final"]) < 1e-5


@pytest.mark.parametrize("name", cases_with("t_max="))
def test_refiner_replays_the_original(name):
    golden = load_file(GOLDEN / "samplers" / f"{name}.safetensors")
    start, num_steps = int(argument(name, "t_max")), int(argument(name, "steps"))
    solver = re.search(r"solver='(\w+)'", SAMPLER_CASES[name]["call"])[1]
    eta = argument(name, "eta", 1.0)
    scheduler = VideoRefineScheduler(solver=solver, eta=eta)
    scheduler.set_timesteps(num_steps, start_timestep=start)
    assert scheduler.timesteps.tolist() == golden["t"][:, 0].tolist()
    torch.testing.assert_close(scheduler.karras_sigmas.float(), golden["sigmas"], rtol=5e-6, atol=0)
    if not name.startswith("sr600"):  # there the start is an inverted video
        noised = scheduler.add_noise(golden["x0"], golden["noise"], start)
        assert relative(noised, golden["noised"]) < 1e-6
    x = golden["noised"] * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        assert relative(scheduler.scale_model_input(x, t), golden["model_input"][i]) < 1e-5
        is_noisy = solver == "dpmpp_2m_sde" and eta > 0 and i + 1 < num_steps
        output = scheduler.step(
            guided(name, golden, x, t), t, x, variance_noise=golden["sde_noise"][i] if is_noisy else None
        )
        assert relative(output.pred_original_sample, golden["x0_pred"][i]) < 1e-5
        x = output.prev_sample
    assert relative(x, golden["final"]) < 1e-5


def test_dpmpp_2m_is_the_sde_without_noise():
    name = "sdedit_dpmpp_30_eta0"
    golden = load_file(GOLDEN / "samplers" / f"{name}.safetensors")
    scheduler = VideoRefineScheduler(solver="dpmpp_2m")
    scheduler.set_timesteps(30)
    x = golden["noised"] * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(guided(name, golden, x, t), t, x).prev_sample
    assert relative(x, golden["final"]) < 1e-5


# DDIM


@pytest.mark.parametrize("spacing", ["original", "leading", "trailing"])
@pytest.mark.parametrize("num_steps, eta", [(1, 0.0), (1, 1.0), (2, 1.0), (3, 1.0), (50, 0.0), (30, 0.7)])
def test_perfect_denoiser_gives_x0_with_ddim(spacing, num_steps, eta):
    scheduler = I2VGenDDIMScheduler(timestep_spacing=spacing, final_alpha_cumprod="one")
    scheduler.set_timesteps(num_steps)
    x0, x = seeded(0, (1, 4, 1, 2, 2)), seeded(1, (1, 4, 1, 2, 2))
    generator = torch.Generator().manual_seed(2)
    for t in scheduler.timesteps:
        v = perfect_velocity(scheduler, x0, x, t)
        output = scheduler.step(v, t, x, eta=eta, generator=generator)
        torch.testing.assert_close(output.pred_original_sample, x0, rtol=1e-4, atol=1e-4)
        x = output.prev_sample
        assert torch.isfinite(x).all()
    torch.testing.assert_close(x, x0, rtol=1e-4, atol=1e-4)
    assert scheduler.step_index == len(scheduler.timesteps)


def test_ddim_takes_as_many_steps_as_there_are_levels():
    scheduler = I2VGenDDIMScheduler(final_alpha_cumprod="one")
    scheduler.set_timesteps(1000)
    x0, x = seeded(0, (1, 4, 1, 2, 2)), seeded(1, (1, 4, 1, 2, 2))
    for t in scheduler.timesteps:
        x = scheduler.step(perfect_velocity(scheduler, x0, x, t), t, x).prev_sample
    torch.testing.assert_close(x, x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "spacing, num_steps, first, last, length",
    [
        ("original", 30, 991, 1, 31),
        ("original", 50, 981, 1, 50),
        ("original", 3, 999, 1, 4),
        ("original", 1000, 999, 1, 1000),
        ("leading", 30, 958, 1, 30),
        ("leading", 1000, 999, 1, 1000),
        ("trailing", 30, 999, 32, 30),
        ("trailing", 4, 999, 249, 4),
        ("trailing", 1, 999, 999, 1),
        ("trailing", 1000, 999, 0, 1000),
    ],
)
def test_ddim_timesteps(spacing, num_steps, first, last, length):
    scheduler = I2VGenDDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    timesteps = scheduler.timesteps.tolist()
    assert (timesteps[0], timesteps[-1], len(timesteps)) == (first, last, length)
    assert timesteps == sorted(timesteps, reverse=True)


def test_trailing_has_exactly_the_steps_asked_for():
    scheduler = I2VGenDDIMScheduler(timestep_spacing="trailing")
    for num_steps in (*range(1, 51), *range(60, 1000, 47), 1000):
        scheduler.set_timesteps(num_steps)
        assert len(set(scheduler.timesteps.tolist())) == num_steps


def test_repeated_first_timestep_keeps_the_sample():
    scheduler = I2VGenDDIMScheduler()
    scheduler.set_timesteps(1000)
    x = seeded(3)
    first = scheduler.step(seeded(4), 999, x).prev_sample
    torch.testing.assert_close(first, x)
    second = scheduler.step(seeded(4), 999, first).prev_sample
    expected = scheduler.alphas[998] * -seeded(4) + scheduler.sigmas[998] * x
    torch.testing.assert_close(second, expected.float(), rtol=1e-5, atol=1e-6)


def test_ddim_is_deterministic_and_draws_nothing_without_eta():
    scheduler = I2VGenDDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    generator = torch.Generator().manual_seed(5)
    before, global_before = generator.get_state(), torch.get_rng_state()
    scheduler.step(seeded(6), 999, seeded(7), generator=generator)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), global_before)
    scheduler.step(seeded(6), 749, seeded(7), eta=0.5, generator=generator)
    assert not torch.equal(generator.get_state(), before)


def test_inverting_and_sampling_return_to_the_start():
    """Both are first order, so twice the steps halve the distance."""
    scheduler = I2VGenDDIMScheduler(timestep_spacing="trailing")
    x0, distances = seeded(8), []
    for num_steps in (50, 100):
        x = x0
        for t, next_t in scheduler.inversion_timesteps(num_steps):
            x = scheduler.invert_step(analytic_model(x, t, x0), t, next_t, x)
        scheduler.set_timesteps(num_steps)
        for t in scheduler.timesteps:
            x = scheduler.step(analytic_model(x, t, x0), t, x).prev_sample
        distances.append(relative(x, x0))
    assert distances[0] < 0.06
    assert distances[1] < 0.55 * distances[0]


def test_epsilon_and_velocity_predictions_agree():
    v_scheduler = I2VGenDDIMScheduler()
    epsilon_scheduler = I2VGenDDIMScheduler(prediction_type="epsilon")
    x0, noise = seeded(9), seeded(10)
    for scheduler in (v_scheduler, epsilon_scheduler):
        scheduler.set_timesteps(10)
    t = v_scheduler.timesteps[0]
    x = v_scheduler.add_noise(x0, noise, t)
    from_v = v_scheduler.step(v_scheduler.get_velocity(x0, noise, t), t, x).prev_sample
    from_epsilon = epsilon_scheduler.step(noise, t, x).prev_sample
    torch.testing.assert_close(from_v, from_epsilon, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(from_v, v_scheduler.add_noise(x0, noise, 801), rtol=1e-4, atol=1e-5)


def test_epsilon_prediction_at_pure_noise_is_an_error():
    scheduler = I2VGenDDIMScheduler(prediction_type="epsilon", timestep_spacing="trailing")
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="pure noise"):
        scheduler.step(seeded(11), 999, seeded(12))


def test_configuration_of_diffusers_is_understood():
    theirs = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="leading",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    ours = I2VGenDDIMScheduler.from_config(theirs.config)
    assert ours.config.timestep_spacing == "leading"
    x = theirs_x = seeded(13)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(12)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    for t in ours.timesteps:
        x = ours.step(analytic_model(x, t, seeded(14)), t, x).prev_sample
        theirs_x = theirs.step(analytic_model(theirs_x, t, seeded(14)), t, theirs_x).prev_sample
    assert relative(x, theirs_x) < 5e-5
    stable_diffusion = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.01)
    converted = I2VGenDDIMScheduler.from_config(stable_diffusion.config, rescale_betas_zero_snr=False)
    torch.testing.assert_close(converted.betas.float(), stable_diffusion.betas)


# Refiner


@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("discretization", ["trailing", "linspace"])
@pytest.mark.parametrize("num_steps, start", [(1, 599), (2, 599), (3, 999), (30, 599), (1, 999)])
def test_perfect_denoiser_gives_x0_with_the_refiner(solver, discretization, num_steps, start):
    scheduler = VideoRefineScheduler(solver=solver, discretization=discretization)
    scheduler.set_timesteps(num_steps, start_timestep=start)
    shape = (1, 4, 1, 2, 2)
    x0 = seeded(0, shape)
    x = scheduler.add_noise(x0, seeded(1, shape), start) * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(2)
    is_pure_noise = start == 999
    evaluations = 2 * num_steps - 1 - (is_pure_noise and num_steps > 1) if solver == "heun" else num_steps
    assert len(scheduler.timesteps) == evaluations
    for t in scheduler.timesteps:
        x = scheduler.step(perfect_velocity(scheduler, x0, x, t), t, x, generator=generator).prev_sample
        assert torch.isfinite(x).all()
    torch.testing.assert_close(x, x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "heun"])
@pytest.mark.parametrize("discretization", ["trailing", "linspace"])
@pytest.mark.parametrize("num_steps, start", [(599, 599), (598, 999), (999, 999), (1, 1)])
def test_levels_of_the_refiner_fall_for_any_number_of_steps(solver, discretization, num_steps, start):
    scheduler = VideoRefineScheduler(solver=solver, discretization=discretization)
    scheduler.set_timesteps(num_steps, start_timestep=start)
    levels, timesteps = scheduler.karras_sigmas, scheduler.timesteps
    assert len(levels) == num_steps + 1
    assert levels[-1] == 0.0
    assert (levels[1:] < levels[:-1]).all()
    assert (timesteps[1:] <= timesteps[:-1]).all()
    assert timesteps[0] == start
    assert timesteps[-1] >= 0


def test_start_factor_of_the_refiner():
    exact, plain = VideoRefineScheduler(), VideoRefineScheduler(exact_start=False)
    assert exact.init_noise_sigma == pytest.approx(0.9724, abs=5e-5)
    assert plain.init_noise_sigma == 1.0
    exact.set_timesteps(2, start_timestep=699)
    assert exact.init_noise_sigma == pytest.approx(0.9879, abs=5e-5)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun"])
def test_refiner_solvers_converge_to_one_path(solver):
    ends = []
    for num_steps in (15, 60):
        scheduler = VideoRefineScheduler(solver=solver, discretization="linspace")
        scheduler.set_timesteps(num_steps)
        x = seeded(15) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(analytic_model(x, t, seeded(16)), t, x).prev_sample
        ends.append(x)
    reference = VideoRefineScheduler(solver="heun", discretization="linspace")
    reference.set_timesteps(240)
    x = seeded(15) * reference.init_noise_sigma
    for t in reference.timesteps:
        x = reference.step(analytic_model(x, t, seeded(16)), t, x).prev_sample
    assert relative(ends[0], x) < 0.03
    assert relative(ends[1], x) < 0.003


@pytest.mark.parametrize(
    "options, draws",
    [
        ({"solver": "dpmpp_2m"}, False),
        ({"solver": "heun"}, False),
        ({"eta": 0.0}, False),
        ({"eta": 1.0}, True),
    ],
)
def test_refiner_draws_only_when_it_adds_noise(options, draws):
    scheduler = VideoRefineScheduler(**options)
    scheduler.set_timesteps(3)
    generator = torch.Generator().manual_seed(17)
    before, global_before = generator.get_state(), torch.get_rng_state()
    x = seeded(18)
    for t in scheduler.timesteps:
        x = scheduler.step(seeded(19), t, x, generator=generator).prev_sample
    assert torch.equal(generator.get_state(), before) != draws
    assert torch.equal(torch.get_rng_state(), global_before)


@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "heun"])
def test_copied_refiner_continues_the_run(solver):
    scheduler = VideoRefineScheduler(solver=solver, eta=0.0)
    scheduler.set_timesteps(4)
    assert scheduler.step_index == 0
    x = seeded(20)
    for t in scheduler.timesteps[:2]:
        x = scheduler.step(analytic_model(x, t, x), t, x).prev_sample
    assert scheduler.step_index == 2
    ends = []
    for twin in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler)), scheduler):
        y = x
        for t in scheduler.timesteps[2:]:
            y = twin.step(analytic_model(y, t, y), t, y).prev_sample
        ends.append(y)
    assert torch.equal(ends[0], ends[2])
    assert torch.equal(ends[1], ends[2])


def test_refiner_takes_timesteps_in_order():
    scheduler = VideoRefineScheduler(solver="heun")
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(seeded(21), 599, seeded(22))
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="599"):
        scheduler.step(seeded(21), 299, seeded(22))
    for t in scheduler.timesteps:
        scheduler.step(seeded(21), t, seeded(22))
    with pytest.raises(ValueError, match="complete"):
        scheduler.step(seeded(21), 599, seeded(22))


# Both


def run(scheduler, x: torch.Tensor, y: torch.Tensor, generator) -> torch.Tensor:
    scheduler.set_timesteps(4)
    extra = {"eta": 0.7} if isinstance(scheduler, I2VGenDDIMScheduler) else {}
    for t in scheduler.timesteps:
        x = scheduler.step(analytic_model(x, t, y), t, x, generator=generator, **extra).prev_sample
    return x


@pytest.mark.parametrize("make", [I2VGenDDIMScheduler, VideoRefineScheduler])
def test_generators_per_item_give_the_result_of_single_runs(make):
    x, y = seeded(23), seeded(24)
    together = run(make(), x, y, [torch.Generator().manual_seed(seed) for seed in (31, 32)])
    for i, seed in enumerate((31, 32)):
        alone = run(make(), x[i : i + 1], y[i : i + 1], torch.Generator().manual_seed(seed))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="generator holds 1"):
        run(make(), x, y, [torch.Generator()])


@pytest.mark.parametrize("make", [I2VGenDDIMScheduler, VideoRefineScheduler])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_of_the_sample_is_kept(make, dtype):
    scheduler = make()
    x, v = seeded(25).to(dtype), seeded(26).to(dtype)
    outputs = []
    for to in (dtype, torch.float64):
        scheduler.set_timesteps(4)
        t = scheduler.timesteps[0]
        outputs.append(scheduler.step(v.to(to), t, x.to(to), variance_noise=seeded(30).to(to)))
    output, full = outputs
    assert output.prev_sample.dtype == output.pred_original_sample.dtype == dtype
    tolerance = 2 * torch.finfo(dtype).eps + 1e-12
    assert relative(output.pred_original_sample, full.pred_original_sample) < tolerance
    assert relative(output.prev_sample, full.prev_sample) < tolerance
    assert scheduler.add_noise(x, v, t).dtype == scheduler.get_velocity(x, v, t).dtype == dtype


@pytest.mark.parametrize("make", [I2VGenDDIMScheduler, VideoRefineScheduler])
def test_noise_and_velocity_give_back_x0(make):
    scheduler = make()
    x0, noise, t = seeded(27), seeded(28), torch.tensor([0, 999])
    x, v = scheduler.add_noise(x0, noise, t), scheduler.get_velocity(x0, noise, t)
    alpha, sigma = (table[t].float().view(2, 1, 1, 1, 1) for table in (scheduler.alphas, scheduler.sigmas))
    torch.testing.assert_close(alpha * x - sigma * v, x0, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x[1], noise[1])
    torch.testing.assert_close(scheduler.add_noise(x0[1:], noise[1:], 999), x[1:])


@pytest.mark.parametrize(
    "scheduler",
    [
        I2VGenDDIMScheduler(beta_schedule="linear_sd", beta_end=0.013, timestep_spacing="trailing"),
        VideoRefineScheduler(solver="heun", start_timestep=499, exact_start=False),
    ],
)
def test_configuration_survives_saving(scheduler, tmp_path):
    scheduler.save_pretrained(tmp_path)
    loaded = type(scheduler).from_pretrained(tmp_path)
    assert loaded.config.items() >= {k: v for k, v in scheduler.config.items() if k[0] != "_"}.items()
    assert torch.equal(loaded.alphas, scheduler.alphas)
    assert dict(copy.deepcopy(scheduler).config) == dict(pickle.loads(pickle.dumps(scheduler)).config)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: I2VGenDDIMScheduler(beta_schedule="linear"), "beta_schedule is 'linear'"),
        (lambda: I2VGenDDIMScheduler(prediction_type="sample"), "prediction_type"),
        (lambda: I2VGenDDIMScheduler(timestep_spacing="linspace"), "timestep_spacing"),
        (lambda: I2VGenDDIMScheduler(final_alpha_cumprod="last"), "final_alpha_cumprod"),
        (lambda: I2VGenDDIMScheduler(steps_offset=-1), "steps_offset"),
        (lambda: I2VGenDDIMScheduler().set_timesteps(0), "num_inference_steps is 0"),
        (lambda: I2VGenDDIMScheduler().set_timesteps(1001), "num_inference_steps is 1001"),
        (lambda: I2VGenDDIMScheduler().step(seeded(0), 1, seeded(0)), "set_timesteps"),
        (lambda: I2VGenDDIMScheduler().inversion_timesteps(4, 1000), "end_timestep is 1000"),
        (lambda: I2VGenDDIMScheduler().invert_step(seeded(0), 5, 5, seeded(0)), "next_timestep 5"),
        (lambda: VideoRefineScheduler(solver="euler"), "solver is 'euler'"),
        (lambda: VideoRefineScheduler(discretization="leading"), "discretization"),
        (lambda: VideoRefineScheduler(eta=1.5), "eta is 1.5"),
        (lambda: VideoRefineScheduler(start_timestep=1000), "start_timestep is 1000"),
        (lambda: VideoRefineScheduler().set_timesteps(600), "num_inference_steps is 600"),
    ],
)
def test_wrong_values_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_wrong_step_arguments_are_named():
    scheduler = I2VGenDDIMScheduler()
    scheduler.set_timesteps(10)
    x = seeded(29)
    with pytest.raises(ValueError, match="eta is 2"):
        scheduler.step(x, 901, x, eta=2)
    with pytest.raises(ValueError, match="timestep is 900"):
        scheduler.step(x, 900, x)
    with pytest.raises(ValueError, match="one timestep for the batch"):
        scheduler.step(x, torch.tensor([901, 901]), x)
    with pytest.raises(ValueError, match="both given"):
        scheduler.step(x, 901, x, eta=1.0, generator=torch.Generator(), variance_noise=x)


# Guidance


def test_guidance_is_linear_without_rescale():
    cond, uncond = seeded(40), seeded(41)
    torch.testing.assert_close(apply_guidance(cond, uncond, 9.0), 9 * cond - 8 * uncond, rtol=1e-4, atol=1e-5)
    assert torch.equal(apply_guidance(cond, uncond, 1.0, 0.5), cond)
    torch.testing.assert_close(apply_guidance(cond, uncond, 0.0), uncond)


def test_full_rescale_gives_the_contrast_of_the_conditional_prediction():
    cond, uncond = seeded(42) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1), seeded(43)
    rescaled = apply_guidance(cond, uncond, 7.5, 1.0)
    torch.testing.assert_close(rescaled.flatten(1).std(dim=1), cond.flatten(1).std(dim=1))
    half = apply_guidance(cond, uncond, 7.5, 0.5)
    torch.testing.assert_close(half, (rescaled + apply_guidance(cond, uncond, 7.5)) / 2)


def test_guidance_is_computed_in_float32_and_keeps_the_dtype():
    cond, uncond = seeded(44).half(), seeded(45).half()
    guided_half = apply_guidance(cond, uncond, 9.0, 0.2)
    assert guided_half.dtype == torch.float16
    assert torch.equal(guided_half, apply_guidance(cond.float(), uncond.float(), 9.0, 0.2).half())


def test_wrong_guidance_is_named():
    with pytest.raises(ValueError, match=r"guidance_rescale is 1\.2"):
        apply_guidance(seeded(0), seeded(0), 3.0, 1.2)
    with pytest.raises(ValueError, match="shape"):
        apply_guidance(seeded(0), seeded(0)[:1], 3.0)
