"""nano's motion prior: where the image goes, before the network says what it looks like there.

From the text and the seconds since the image a small network predicts a similarity of the whole frame (a pan, a
tilt, a zoom, a roll), and moves the image latents by it. The moved latents take the place of the frame-position
planes in the content features, and the best linear guess around them is added to the UNet's output.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from i2vgen.models.conditioning import sinusoidal_embedding

NUM_TIMESTEPS = 1000
VARIANCE_SAMPLES = 16  # two seconds, in eighths
SECONDS_DIM = 64
NUM_READERS = 8  # attention heads that pick words out of the text
STILL = 0.012  # a second; a quarter of the slowest motion with a word for it. Less is stillness, and moves nothing


class MotionPrior(nn.Module):
    def __init__(self, context_dim: int, channels: int, hidden_dim: int = 192):
        super().__init__()
        self.score = nn.Linear(context_dim, NUM_READERS)
        self.value = nn.Linear(context_dim, hidden_dim)
        self.mix = nn.Linear(hidden_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, 4)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("levels", torch.zeros(2, NUM_TIMESTEPS))  # alpha and sigma of the schedule
        self.register_buffer("variances", torch.zeros(VARIANCE_SAMPLES, channels))

    @torch.no_grad()
    def set_statistics(self, alpha: torch.Tensor, sigma: torch.Tensor, variances: torch.Tensor) -> None:
        """The schedule's alpha and sigma (1000), and the mean square (16 c) of what frames 0, 1, ... 15 eighths of
        a second after the image differ from the moved image by."""
        self.levels.copy_(torch.stack([alpha, sigma]))
        self.variances.copy_(variances)

    def speeds(self, text: torch.Tensor) -> torch.Tensor:
        """Text tokens (b n d) -> (b 4) a second: pan and tilt of the window in half frames, log zoom, roll in
        radians. The motions that nano knows are uniform."""
        weights = self.score(text).softmax(dim=1)
        values = rearrange(self.value(text), "b n (h d) -> b n h d", h=NUM_READERS)
        read = torch.einsum("b n h, b n h d -> b h d", weights, values).flatten(1)
        speeds = self.out(F.silu(self.mix(F.silu(read))))
        return speeds if self.training else speeds * (speeds.abs() > STILL)

    def move(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        fps: torch.Tensor,
        num_frames: int,
        speeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Image (b c 1 h w) -> (b c f h w): frame k as the window sees it k / fps seconds later, edges mirrored.
        `speeds` (b 4) takes the place of those that the text asks for.

        Pixels or latents; latents of 8 x 8 patches turn blocky when moved by parts of a patch, so move pixels and
        encode them where there is a VAE at hand.
        """
        b, _, _, h, w = image.shape
        seconds = torch.arange(num_frames, device=text.device)[None] / fps.float()[:, None]
        speeds = self.speeds(text) if speeds is None else speeds
        pan, tilt, zoom, roll = (speeds.float()[:, None] * seconds[..., None]).unbind(-1)  # (b f)
        cos, sin, scale = roll.cos(), roll.sin(), torch.exp(-zoom)
        across = torch.stack([scale * cos, -scale * sin * h / w, pan], dim=-1)
        down = torch.stack([scale * sin * w / h, scale * cos, tilt], dim=-1)
        matrices = rearrange(torch.stack([across, down], dim=2), "b f i j -> (b f) i j")
        grid = F.affine_grid(matrices, (b * num_frames, 1, h, w), align_corners=False)
        frames = rearrange(image.float().expand(-1, -1, num_frames, -1, -1), "b c f h w -> (b f) c h w")
        moved = F.grid_sample(frames, grid, "bicubic", "reflection", align_corners=False)
        moved = rearrange(moved, "(b f) c h w -> b c f h w", b=b)
        return torch.cat([image.float(), moved[:, :, 1:]], dim=2).to(image.dtype)

    def velocity(self, sample: torch.Tensor, mean: torch.Tensor, t: torch.Tensor, fps: torch.Tensor) -> torch.Tensor:
        """Mean velocity (b c f h w), float32, given the sample, if x_0 ~ N(m, s^2) around the moved image m:

        -sigma m + alpha sigma (1 - s^2) / (alpha^2 s^2 + sigma^2) (x_t - alpha m)
        """
        frames = torch.arange(sample.shape[2], device=sample.device)
        elapsed = (8 * frames[None] / fps.float()[:, None]).clamp_max(VARIANCE_SAMPLES - 1)  # (b f)
        table = self.variances.float()
        variances = torch.lerp(table[elapsed.floor().long()], table[elapsed.ceil().long()], elapsed.frac()[..., None])
        s2 = rearrange(variances, "b f c -> b c f 1 1")
        alpha, sigma = self.levels.float()[:, t, None, None, None, None]
        gain = alpha * sigma * (1 - s2) / (alpha**2 * s2 + sigma**2).clamp_min(1e-8)
        mean = mean.float()
        return gain * (sample.float() - alpha * mean) - sigma * mean


class MotionEmbedding(nn.Module):
    """What the text asks of each frame, for the residual blocks: from its mean token and the time since the image."""

    def __init__(self, context_dim: int, dim: int):
        super().__init__()
        self.text = nn.Linear(context_dim, dim)
        self.seconds = nn.Linear(SECONDS_DIM, dim)
        self.mix = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, text: torch.Tensor, fps: torch.Tensor, num_frames: int) -> torch.Tensor:
        """`text` (b n d), `fps` (b) -> (b f dim)."""
        frames = torch.arange(num_frames, device=text.device)
        seconds = frames[None] / fps.float()[:, None]
        waves = sinusoidal_embedding(250 * seconds.flatten(), SECONDS_DIM).to(text.dtype)
        place = self.seconds(waves).view(len(text), num_frames, -1)
        x = F.silu(place + self.text(text.mean(dim=1))[:, None])
        return self.out(F.silu(self.mix(x)))
