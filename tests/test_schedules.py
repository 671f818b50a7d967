"""Noise schedules, the process that both samplers share, and guidance."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from golden_samplers import analytic_model, relative, seeded
from i2vgen.schedulers import (
    I2VGenDDIMScheduler,
    VideoRefineScheduler,
    alphas_from_sigmas,
    apply_guidance,
    logsnr_cosine_interp_sigmas,
)

# Schedules


def test_refiner_sigmas_rise_to_pure_noise():
    sigmas = logsnr_cosine_interp_sigmas()
    assert sigmas[-1] == 1.0
    assert alphas_from_sigmas(sigmas)[-1] == 0.0
    assert (sigmas[1:] > sigmas[:-1]).all()


def test_refiner_schedule_ends_in_pure_noise_for_any_scale():
    assert logsnr_cosine_interp_sigmas(100, scale_min=0.5, scale_max=0.5)[-1] == 1.0


# What both samplers keep to


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
        (lambda: I2VGenDDIMScheduler().invert_step(seeded(0), 5, 4, seeded(0)), "next_timestep 4"),
        (lambda: VideoRefineScheduler(solver="euler"), "solver is 'euler'"),
        (lambda: VideoRefineScheduler(discretization="log"), "discretization"),
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
