"""Sampler of the refinement stage: a video is noised part of the way and denoised with few, large steps.

The original works on x / alpha with k-diffusion's solvers. Here the same steps are written for the variance
preserving sample, which stays finite at zero terminal SNR, is what the model takes, and fits half precision.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .process import Generators, StepOutput, compute_dtype, diffuse, step_noise, timestep_to_int, velocity
from .schedules import alphas_from_sigmas, logsnr_cosine_interp_sigmas

SOLVERS = ("dpmpp_2m_sde", "dpmpp_2m", "heun")
DISCRETIZATIONS = ("trailing", "linspace", "leading")


class VideoRefineScheduler(SchedulerMixin, ConfigMixin):
    """DPM-Solver++(2M), as SDE or ODE, and Heun on the refiner's schedule, for a model that predicts v.

    One run::

        scheduler.set_timesteps(num_inference_steps)
        latents = scheduler.add_noise(latents, noise, scheduler.start_timestep) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            v = model(scheduler.scale_model_input(latents, t), t)
            latents = scheduler.step(v, t, latents, generator=generator).prev_sample

    Args:
        num_train_timesteps: number of noise levels of the schedule.
        scale_min, scale_max: shift of the schedule at its first and last level.
        solver: "dpmpp_2m_sde", "dpmpp_2m" (the same without added noise) or "heun".
        eta: noise that "dpmpp_2m_sde" adds, from 0 (none) to 1; the other solvers add none.
        start_timestep: level that the input is noised to; refiners are trained on 0 to 599 only.
        discretization: "trailing" spreads the levels over (0, start_timestep], "linspace" includes both ends,
            "leading" spreads them over [0, start_timestep): the first level then lies below that of the input.
        exact_start: multiply the noised input by its sigma (0.9724 at t=599), because the original scales it
            by sigma / alpha where 1 / alpha is due; False gives the model the noised input as it is.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        scale_min: float = 2.0,
        scale_max: float = 4.0,
        solver: str = "dpmpp_2m_sde",
        eta: float = 1.0,
        start_timestep: int = 599,
        discretization: str = "trailing",
        exact_start: bool = True,
    ):
        if solver not in SOLVERS:
            raise ValueError(f"solver is {solver!r}; choose one of {', '.join(SOLVERS)}")
        if discretization not in DISCRETIZATIONS:
            raise ValueError(f"discretization is {discretization!r}; choose one of {', '.join(DISCRETIZATIONS)}")
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta is {eta}; choose a value from 0 (deterministic) to 1")
        self.sigmas = logsnr_cosine_interp_sigmas(num_train_timesteps, scale_min, scale_max)
        self.alphas = alphas_from_sigmas(self.sigmas)
        self.start_timestep = self._checked_start(start_timestep)

        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(self.start_timestep, -1, -1)
        self.karras_sigmas = torch.zeros(0, dtype=torch.float64)
        self._evaluations: list[tuple[int, int, bool]] = []
        self._forget()

    @property
    def order(self) -> int:
        """Model evaluations a step, as diffusers' pipelines count them."""
        return 2 if self.config.solver == "heun" else 1

    @property
    def init_noise_sigma(self) -> float:
        """Factor on the noised latents that makes them the sample of the first step; see `exact_start`."""
        if not self.config.exact_start:
            return 1.0
        if self.config.discretization == "leading" and self._evaluations:
            return self._alpha_sigma(0)[1]
        return self.sigmas[self.start_timestep].item()

    @property
    def step_index(self) -> int | None:
        """Number of evaluations done in this run; None before `set_timesteps`."""
        return self._step_index if self._evaluations else None

    def set_timesteps(
        self,
        num_inference_steps: int,
        start_timestep: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """Choose the noise levels of a run and start it.

        Afterwards `timesteps` (int64, on `device`) holds one entry per model evaluation, 2n - 1 for "heun",
        and `karras_sigmas` (float64, `(n + 1,)`) the levels, the last one 0. `start_timestep` replaces that
        of the configuration for this run. Levels lie between timesteps; the model is told the nearest one.

        Raises ValueError for a start outside 1 to num_train_timesteps - 1, or more steps than start_timestep.
        """
        self.start_timestep = self._checked_start(
            self.config.start_timestep if start_timestep is None else start_timestep
        )
        if not 1 <= num_inference_steps <= self.start_timestep:
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}; choose from 1 to start_timestep, {self.start_timestep}"
            )
        times = self._level_times(num_inference_steps)
        self.karras_sigmas = torch.cat([self._karras_sigmas_at(times), torch.zeros(1, dtype=torch.float64)])

        self._evaluations = []
        rounded = torch.round(times).long().tolist()  # half to even, as the original
        for level, timestep in enumerate(rounded):
            self._evaluations.append((timestep, level, False))
            has_corrector = self.config.solver == "heun" and level + 1 < num_inference_steps
            if has_corrector and math.isfinite(self.karras_sigmas[level].item()):
                self._evaluations.append((rounded[level + 1], level, True))
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor([t for t, _, _ in self._evaluations], dtype=torch.int64, device=device)
        self._forget()

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """The sample itself: it is variance preserving, as the model expects."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, torch.Tensor]:
        """Use one model evaluation; entries of `timesteps` are taken in order, each once.

        Args:
            model_output: the guided v prediction, in the shape `(b ...)` of `sample`.
            timestep: the current entry of `timesteps`.
            sample: what the model was given.
            generator: one for the batch, or a list with one per item; used by "dpmpp_2m_sde" with eta > 0, in
                all steps but the last.
            variance_noise: unit normal noise to use in place of a drawn one.

        Returns a `StepOutput` of `prev_sample` and `pred_original_sample`, or these as a tuple.
        Raises ValueError when `timestep` is not the next one of the run: the solvers remember earlier steps.
        """
        timestep = timestep_to_int(timestep)
        level, is_corrector = self._next_evaluation(timestep)
        dtype = compute_dtype(sample)
        state = sample.to(dtype)
        alpha, sigma = self.alphas[timestep].item(), self.sigmas[timestep].item()
        original = alpha * state - sigma * model_output.to(dtype)

        if is_corrector:
            prev_sample = self._heun_corrector(level, state, original)
        elif level + 1 == self.num_inference_steps:
            prev_sample = original
        elif self.karras_sigmas[level] == math.inf:
            alpha_next, sigma_next = self._alpha_sigma(level + 1)
            prev_sample = alpha_next * original + sigma_next * state
        elif self.config.solver == "heun":
            prev_sample = self._heun_predictor(level, state, original)
        else:
            prev_sample = self._dpmpp_2m(level, state, original)
            if self._eta() > 0:
                noise = step_noise(sample, generator, variance_noise)
                prev_sample = prev_sample + self._noise_scale(level) * noise

        self._step_index += 1
        if self._step_index == len(self._evaluations):
            self._previous_original = self._heun_start = None
        prev_sample, original = prev_sample.to(sample.dtype), original.to(sample.dtype)
        if not return_dict:
            return prev_sample, original
        return StepOutput(prev_sample=prev_sample, pred_original_sample=original)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor
    ) -> torch.Tensor:
        """x_t = alpha x_0 + sigma noise; `timesteps` is one level, or `(b,)` levels for samples `(b ...)`."""
        return diffuse(original_samples, noise, timesteps, self.alphas, self.sigmas)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor) -> torch.Tensor:
        """Training target v = alpha noise - sigma x_0; `sample` is x_0, `timesteps` are as in `add_noise`."""
        return velocity(sample, noise, timesteps, self.alphas, self.sigmas)

    def _dpmpp_2m(self, level: int, state: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """The part of a DPM-Solver++(2M) step without new noise (arXiv 2211.01095; SDE form, midpoint)."""
        eta, log_step = self._eta(), self._log_step(level)
        _, sigma = self._alpha_sigma(level)
        alpha_next, sigma_next = self._alpha_sigma(level + 1)
        weight = -alpha_next * math.expm1(-(1 + eta) * log_step)
        next_state = sigma_next / sigma * math.exp(-eta * log_step) * state + weight * original
        if self._previous_original is not None:
            ratio = log_step / self._log_step(level - 1)
            next_state = next_state + 0.5 * weight * ratio * (original - self._previous_original)
        self._previous_original = original
        return next_state

    def _noise_scale(self, level: int) -> float:
        _, sigma_next = self._alpha_sigma(level + 1)
        return sigma_next * math.sqrt(-math.expm1(-2 * self._eta() * self._log_step(level)))

    def _heun_predictor(self, level: int, state: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """Euler step to the next level (arXiv 2206.00364, algorithm 1), on x / alpha."""
        alpha, _ = self._alpha_sigma(level)
        alpha_next, _ = self._alpha_sigma(level + 1)
        karras_sigma, karras_sigma_next = self.karras_sigmas[level : level + 2].tolist()
        start = state / alpha
        slope = (start - original) / karras_sigma
        self._heun_start = (start, slope)
        return alpha_next * (start + (karras_sigma_next - karras_sigma) * slope)

    def _heun_corrector(self, level: int, state: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """The same step from the mean of the slopes at its two ends."""
        alpha_next, _ = self._alpha_sigma(level + 1)
        karras_sigma, karras_sigma_next = self.karras_sigmas[level : level + 2].tolist()
        start, slope = self._heun_start
        slope_next = (state / alpha_next - original) / karras_sigma_next
        return alpha_next * (start + (karras_sigma_next - karras_sigma) * (slope + slope_next) / 2)

    def _eta(self) -> float:
        return self.config.eta if self.config.solver == "dpmpp_2m_sde" else 0.0

    def _log_step(self, level: int) -> float:
        karras_sigma, karras_sigma_next = self.karras_sigmas[level : level + 2].tolist()
        return math.log(karras_sigma / karras_sigma_next)

    def _alpha_sigma(self, level: int) -> tuple[float, float]:
        karras_sigma = self.karras_sigmas[level].item()
        if karras_sigma == math.inf:
            return 0.0, 1.0
        alpha = 1 / math.hypot(1, karras_sigma)
        return alpha, karras_sigma * alpha

    def _level_times(self, num_inference_steps: int) -> torch.Tensor:
        """Fractional timesteps `(n,)` of the noisy levels, float64, falling from `start_timestep`."""
        # DPM-Solver++ spreads one level more and leaves out the last, so that it ends with a larger step.
        num_levels = num_inference_steps + (self.config.solver != "heun")
        if self.config.discretization == "linspace":
            spacing = self.start_timestep / max(num_levels - 1, 1)
        else:
            spacing = (self.start_timestep + 1) / num_levels
        if self.config.discretization == "leading":
            return spacing * torch.arange(num_levels - 1, -1, -1, dtype=torch.float64)[:num_inference_steps]
        times = self.start_timestep - spacing * torch.arange(num_inference_steps, dtype=torch.float64)
        return times.clamp(min=0)  # the last one may round to just below 0

    def _karras_sigmas_at(self, times: torch.Tensor) -> torch.Tensor:
        """sigma / alpha at fractional timesteps, linear in the logarithm; inf if a neighbour has alpha 0."""
        log_ratio = torch.log(self.sigmas.double() / self.alphas.double())
        low, weight = times.floor().long(), times.frac()
        high = times.ceil().long()
        between = (1 - weight) * log_ratio[low] + weight * log_ratio[high]
        return torch.where(weight == 0, log_ratio[low], between).exp()

    def _next_evaluation(self, timestep: int) -> tuple[int, bool]:
        if not self._evaluations:
            raise ValueError("timesteps are not chosen yet; call set_timesteps before step")
        if self._step_index == len(self._evaluations):
            raise ValueError(f"timestep is {timestep}, but the run is complete; call set_timesteps for a new one")
        expected, level, is_corrector = self._evaluations[self._step_index]
        if timestep != expected:
            raise ValueError(
                f"timestep is {timestep}, but evaluation {self._step_index} of the run is at {expected}; "
                "take timesteps in order, or call set_timesteps to start again"
            )
        return level, is_corrector

    def _checked_start(self, start_timestep: int) -> int:
        last = self.config.num_train_timesteps - 1
        if not 1 <= start_timestep <= last:
            raise ValueError(f"start_timestep is {start_timestep}; choose from 1 to {last}")
        return start_timestep

    def _forget(self) -> None:
        self._step_index = 0
        self._previous_original: torch.Tensor | None = None
        self._heun_start: tuple[torch.Tensor, torch.Tensor] | None = None
