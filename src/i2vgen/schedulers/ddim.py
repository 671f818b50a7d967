"""DDIM for the base stage, and its inversion.

diffusers' DDIMScheduler cannot reproduce the original: it has no 31-evaluation form of 30 steps, keeps its
schedule in float32, and its trailing spacing may return one step too many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .process import Generators, StepOutput, compute_dtype, diffuse, step_noise, timestep_to_int, velocity
from .schedules import alphas_cumprod_from_betas, cosine_betas, linear_sd_betas, rescale_zero_terminal_snr

# The second names are diffusers' spelling, so that the configuration of its DDIMScheduler can be read.
COSINE_NAMES = ("cosine", "squaredcos_cap_v2")
LINEAR_SD_NAMES = ("linear_sd", "scaled_linear")


class I2VGenDDIMScheduler(SchedulerMixin, ConfigMixin):
    """DDIM sampler (arXiv 2010.02502) of I2VGen-XL: v prediction on a zero-terminal-SNR cosine schedule.

    With t=999 pure noise, x_0 and the noise are both read from v without a division, so every timestep gives
    finite numbers. Samples are computed in float32 (float64 samples in float64) and returned in their dtype.

    Args:
        num_train_timesteps: number of noise levels of training.
        beta_schedule: "cosine" or "linear_sd"; diffusers' "squaredcos_cap_v2" and "scaled_linear" mean these.
        beta_start, beta_end: ends of "linear_sd"; unused by "cosine".
        rescale_betas_zero_snr: shift the schedule so that the last timestep is pure noise.
        prediction_type: what the model returns, "v_prediction" or "epsilon".
        timestep_spacing: "original" steps 1 + k * (1000 // n), so that 30 steps make 31 evaluations, as in
            VGen; "leading" takes exactly n of these; "trailing" spreads n steps evenly from t=999 down, the
            choice for few steps, since sampling then starts at the level where the sample is pure noise.
        steps_offset: first timestep of "leading".
        final_alpha_cumprod: level after the last step, "first" = that of t=0, as in VGen, or "one" = clean.

    Latents are never clipped, whatever `clip_sample` a configuration from diffusers holds.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: str = "cosine",
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        rescale_betas_zero_snr: bool = True,
        prediction_type: str = "v_prediction",
        timestep_spacing: str = "original",
        steps_offset: int = 1,
        final_alpha_cumprod: str = "first",
    ):
        _check_choice("beta_schedule", beta_schedule, COSINE_NAMES + LINEAR_SD_NAMES)
        _check_choice("prediction_type", prediction_type, ("v_prediction", "epsilon"))
        _check_choice("timestep_spacing", timestep_spacing, ("original", "leading", "trailing"))
        _check_choice("final_alpha_cumprod", final_alpha_cumprod, ("first", "one"))
        if steps_offset < 0:
            raise ValueError(f"steps_offset is {steps_offset}; choose 0 or more")
        if beta_schedule in COSINE_NAMES:
            betas = cosine_betas(num_train_timesteps)
        else:
            betas = linear_sd_betas(num_train_timesteps, beta_start, beta_end)
        self.betas = rescale_zero_terminal_snr(betas) if rescale_betas_zero_snr else betas
        self.alphas_cumprod = alphas_cumprod_from_betas(self.betas)
        self.alphas = self.alphas_cumprod.sqrt()
        self.sigmas = (1 - self.alphas_cumprod).sqrt()

        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._schedule: list[int] = []
        self._step_index: int | None = None

    @property
    def step_index(self) -> int | None:
        """Number of steps done in this run; None before the first one."""
        return self._step_index

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the timesteps of a run and start it: `timesteps` is int64, falling, on `device`.

        Raises ValueError unless 1 <= num_inference_steps <= num_train_timesteps.
        """
        self._check_num_inference_steps(num_inference_steps)
        total = self.config.num_train_timesteps
        stride = total // num_inference_steps
        if self.config.timestep_spacing == "original":
            schedule = [1 + k for k in range(0, total, stride)][::-1]
        elif self.config.timestep_spacing == "leading":
            schedule = [self.config.steps_offset + k * stride for k in range(num_inference_steps)][::-1]
        else:
            schedule = [round(total - k * total / num_inference_steps) - 1 for k in range(num_inference_steps)]
        self._schedule = [min(t, total - 1) for t in schedule]
        self._step_index = None
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(self._schedule, dtype=torch.int64, device=device)

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """The sample itself: it is variance preserving, as the model expects."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, torch.Tensor]:
        """Go from `timestep` to the following one of the run.

        Args:
            model_output: the (guided) prediction at `timestep`, in the shape `(b ...)` of `sample`.
            timestep: one entry of `timesteps`.
            sample: x_t.
            eta: 0 is deterministic and draws nothing, 1 is DDPM.
            generator: one for the batch, or a list with one per item; used when eta > 0.
            variance_noise: unit normal noise to use in place of a drawn one.

        Returns a `StepOutput` of `prev_sample` and `pred_original_sample`, or these as a tuple.
        Raises ValueError for eta outside [0, 1], a timestep that is not in the run, or an epsilon prediction
        at pure noise.
        """
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta is {eta}; choose a value from 0 (deterministic) to 1")
        timestep = timestep_to_int(timestep)
        index = self._find_step(timestep)
        alpha_bar = self.alphas_cumprod[timestep].item()
        alpha_bar_prev = self._alpha_bar_after(index)

        original, epsilon = self._predict(model_output, timestep, sample)
        std = 0.0
        if alpha_bar < alpha_bar_prev:  # eq. 16 of the paper
            std = eta * math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))
        direction = math.sqrt(max(1 - alpha_bar_prev - std**2, 0.0)) * epsilon
        prev_sample = math.sqrt(alpha_bar_prev) * original + direction
        if eta > 0:
            prev_sample = prev_sample + std * step_noise(sample, generator, variance_noise)

        self._step_index = index + 1
        prev_sample, original = prev_sample.to(sample.dtype), original.to(sample.dtype)
        if not return_dict:
            return prev_sample, original
        return StepOutput(prev_sample=prev_sample, pred_original_sample=original)

    def inversion_timesteps(self, num_inference_steps: int, end_timestep: int | None = None) -> list[tuple[int, int]]:
        """Pairs (timestep, next_timestep) that take a clean sample to noise with `invert_step`.

        Timesteps rise from 0 by stride = levels // num_inference_steps, so that the pairs are more than asked
        for where the division leaves a rest. Without `end_timestep` all levels are used and the last
        next_timestep is `num_train_timesteps`, pure noise; with it, the last state is that of `end_timestep`
        (VGen's refiner: 30 steps to 699, 31 pairs). Where a timestep falls on `end_timestep` itself, its pair
        changes nothing, as in the original.

        Raises ValueError for more steps than levels or an `end_timestep` outside the schedule.
        """
        total = self.config.num_train_timesteps
        if end_timestep is not None and not 0 < end_timestep < total:
            raise ValueError(f"end_timestep is {end_timestep}; choose one from 1 to {total - 1}")
        levels = total if end_timestep is None else end_timestep + 1
        last = total if end_timestep is None else end_timestep
        self._check_num_inference_steps(num_inference_steps, levels)
        stride = levels // num_inference_steps
        return [(t, min(t + stride, last)) for t in range(0, levels, stride)]

    def invert_step(
        self, model_output: torch.Tensor, timestep: int, next_timestep: int, sample: torch.Tensor
    ) -> torch.Tensor:
        """Sample at the noisier `next_timestep` on the deterministic path through `sample` at `timestep`.

        `model_output` is the prediction at `timestep`, in the shape `(b ...)` of `sample`. Needs no
        `set_timesteps`; a `next_timestep` of `num_train_timesteps` is pure noise.
        """
        total = self.config.num_train_timesteps
        if not 0 <= timestep <= next_timestep <= total:
            raise ValueError(f"timestep is {timestep}, next_timestep {next_timestep}; they rise within 0 to {total}")
        original, epsilon = self._predict(model_output, timestep, sample)
        alpha_bar_next = self.alphas_cumprod[next_timestep].item() if next_timestep < total else 0.0
        next_sample = math.sqrt(alpha_bar_next) * original + math.sqrt(1 - alpha_bar_next) * epsilon
        return next_sample.to(sample.dtype)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor
    ) -> torch.Tensor:
        """x_t = alpha x_0 + sigma noise; `timesteps` is one level, or `(b,)` levels for samples `(b ...)`."""
        return diffuse(original_samples, noise, timesteps, self.alphas, self.sigmas)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor) -> torch.Tensor:
        """Training target v = alpha noise - sigma x_0; `sample` is x_0, `timesteps` are as in `add_noise`."""
        return velocity(sample, noise, timesteps, self.alphas, self.sigmas)

    def _predict(
        self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Estimates of x_0 and of the noise, in `compute_dtype(sample)`."""
        alpha, sigma = self.alphas[timestep].item(), self.sigmas[timestep].item()
        dtype = compute_dtype(sample)
        model_output, sample = model_output.to(dtype), sample.to(dtype)
        if self.config.prediction_type == "v_prediction":
            return alpha * sample - sigma * model_output, alpha * model_output + sigma * sample
        if alpha == 0.0:
            raise ValueError(
                f"prediction_type is 'epsilon' and timestep {timestep} is pure noise, which leaves x_0 open; "
                "use timestep_spacing 'leading' or rescale_betas_zero_snr=False"
            )
        return (sample - sigma * model_output) / alpha, model_output

    def _find_step(self, timestep: int) -> int:
        """Position of `timestep` in the run: the next one if it fits, else the first that does."""
        if not self._schedule:
            raise ValueError("timesteps are not chosen yet; call set_timesteps before step")
        index = 0 if self._step_index is None else self._step_index
        if index < len(self._schedule) and self._schedule[index] == timestep:
            return index
        if timestep not in self._schedule:
            raise ValueError(f"timestep is {timestep}, which is not in the run; use an entry of timesteps")
        return self._schedule.index(timestep)

    def _alpha_bar_after(self, index: int) -> float:
        if index + 1 < len(self._schedule):
            return self.alphas_cumprod[self._schedule[index + 1]].item()
        return 1.0 if self.config.final_alpha_cumprod == "one" else self.alphas_cumprod[0].item()

    def _check_num_inference_steps(self, num_inference_steps: int, most: int | None = None) -> None:
        most = self.config.num_train_timesteps if most is None else most
        if not 1 <= num_inference_steps <= most:
            raise ValueError(f"num_inference_steps is {num_inference_steps}; choose from 1 to {most}")


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} is {value!r}; choose one of {', '.join(choices)}")


def fields_of_diffusers(config: Mapping[str, Any], is_base: bool) -> dict[str, Any]:
    """Fields of `I2VGenDDIMScheduler` for what a configuration of diffusers' DDIMScheduler says.

    What it leaves out has diffusers' defaults, which are not ours. With `is_base`, its `set_alpha_to_one` is not
    followed: the released i2vgen-xl folder has it from a converter, and the original ends at the level of t=0.

    Raises ValueError naming a setting that `I2VGenDDIMScheduler` does not have.
    """
    schedule = config.get("beta_schedule", "linear")
    _check_choice("beta_schedule", schedule, COSINE_NAMES + LINEAR_SD_NAMES)
    if config.get("trained_betas") is not None:
        raise ValueError("trained_betas are given; only the named beta schedules are known here")
    spacing = config.get("timestep_spacing", "leading")
    ends_clean = config.get("set_alpha_to_one", True) and not is_base
    return {
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "beta_schedule": schedule,
        "beta_start": config.get("beta_start", 0.0001),
        "beta_end": config.get("beta_end", 0.02),
        "rescale_betas_zero_snr": config.get("rescale_betas_zero_snr", False),
        "prediction_type": config.get("prediction_type", "epsilon"),
        "timestep_spacing": {"linspace": "trailing"}.get(spacing, spacing),
        "steps_offset": config.get("steps_offset", 0),
        "final_alpha_cumprod": "one" if ends_clean else "first",
    }
