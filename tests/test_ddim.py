"""DDIM: sampling and inversion against numbers of the original code, timesteps, and other configurations."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from golden_samplers import analytic_model, perfect_velocity, relative, seeded
from i2vgen.schedulers import I2VGenDDIMScheduler


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
