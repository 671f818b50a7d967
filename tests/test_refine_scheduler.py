"""The refiner's sampler against numbers of the original code, its noise levels, and its solvers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from golden_samplers import analytic_model, perfect_velocity, relative, seeded
from i2vgen.schedulers import VideoRefineScheduler


def test_dpmpp_2m_is_the_sde_without_noise():
    ends = []
    for fields in ({"solver": "dpmpp_2m"}, {"solver": "dpmpp_2m_sde", "eta": 0.0}):
        scheduler = VideoRefineScheduler(**fields)
        scheduler.set_timesteps(30)
        x = seeded(0) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(analytic_model(x, t, seeded(1)), t, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("discretization", ["trailing", "linspace", "leading"])
@pytest.mark.parametrize("num_steps, start", [(1, 599), (2, 599), (3, 999), (30, 599), (1, 999)])
def test_perfect_denoiser_gives_x0_with_the_refiner(solver, discretization, num_steps, start):
    scheduler = VideoRefineScheduler(solver=solver, discretization=discretization)
    scheduler.set_timesteps(num_steps, start_timestep=start)
    shape = (1, 4, 1, 2, 2)
    x0 = seeded(0, shape)
    x = scheduler.add_noise(x0, seeded(1, shape), start) * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(2)
    is_pure_noise = start == 999 and discretization != "leading"
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
