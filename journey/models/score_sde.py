"""Score matching with exploding variance: a network of scores in pixels, and its sampler that predicts and corrects.

The network is called with the noised image, in [0, 1] without its noise, and the deviation of the noise.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from journey.data.ids import Ids
from journey.files.fingerprint import fingerprint_tensors
from journey.models.condition import Condition
from journey.models.denoiser import Denoiser
from journey.models.schedules import Schedule


class VarianceExploding(Schedule):
    """``x_t = x0 + s_t noise`` with the noise as target: what a score times ``-s_t`` predicts.

    So the mean square is that of score matching with weights ``s_t^2``, as its trainer has it.

    Args:
        scheduler: A ``ScoreSdeVeScheduler``.

    Reference:
        Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021, Eq. 7
        and 9.
    """

    prediction_type = "score"

    def __init__(self, scheduler: Any) -> None:
        with torch.device("cpu"):
            self._sigmas: Tensor = type(scheduler).from_config(scheduler.config).discrete_sigmas.double()
        self.num_train_timesteps = len(self._sigmas)

    def signal_and_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return one and ``s_t``, see ``Schedule.signal_and_sigma``."""
        sigma = self._sigmas[timesteps.cpu()].float().to(timesteps.device)
        return torch.ones_like(sigma), sigma

    def network_time(self, timesteps: Tensor) -> Tensor:
        """Return ``s_t``, float32. [num_rows]"""
        return self._sigmas[timesteps.cpu()].float().to(timesteps.device)

    def nearest(self, times: Tensor) -> list[int]:
        """Return the timesteps with the nearest ratios of deviations, see ``Schedule.nearest``."""
        apart = times.detach().double().cpu().log()[:, None] - self._sigmas.log()[None]
        return [int(i) for i in apart.abs().argmin(1)]

    def level(self, sampler: Any, index: int) -> tuple[float, float]:
        """Take the deviation that the network is told, see ``Schedule.level``."""
        return 1.0, float(sampler.timesteps[index])

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise, see ``Schedule.target``."""
        return noise

    def invert(self, prediction: Tensor, x_t: Tensor, signal: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Take the noise away, see ``Schedule.invert``."""
        return x_t - sigma * prediction

    def fingerprint(self) -> str:
        """Hash the deviations."""
        return fingerprint_tensors({"sigmas": self._sigmas})


class PredictorCorrector:
    """The sampler of a ``ScoreSdeVeScheduler`` as a scheduler: a time comes once for each call of the network.

    The calls that correct come first, the one that predicts the next time is last. Each image is corrected by a step
    of its own size, whatever else is in the batch; the last step adds no noise.

    Args:
        scheduler: The scheduler; not changed.
    """

    # More than one: it cannot begin in the middle.
    order = 2

    def __init__(self, scheduler: Any) -> None:
        self.config = scheduler.config
        self._calls = int(scheduler.config.correct_steps) + 1
        self.init_noise_sigma = float(scheduler.init_noise_sigma)
        self.timesteps = torch.empty(0, dtype=torch.float32, device="cpu")
        self._index = 0
        self._inner = scheduler

    @classmethod
    def from_config(cls, config: Any) -> PredictorCorrector:
        """Return another of the same settings."""
        # Here, because diffusers versions without it remain usable for the rest.
        from diffusers import ScoreSdeVeScheduler

        return cls(ScoreSdeVeScheduler.from_config(config))

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Make ``timesteps``, the deviations that the network is told, one for each call."""
        self._inner.set_timesteps(num_inference_steps)
        self._inner.set_sigmas(num_inference_steps)
        self.timesteps = self._inner.sigmas.repeat_interleave(self._calls)
        self._index = 0

    def step(
        self, prediction: Tensor, sigma: Tensor, sample: Tensor, generator: list[torch.Generator] | None = None
    ) -> Any:
        """Return the latents after a call as ``prev_sample``.

        Args:
            prediction: The noise, of unit variance. [num_rows, C, H, W]
            sigma: The deviation that the network was told.
            sample: The latents. [num_rows, C, H, W]
            generator: One for each row.

        Returns:
            An object with ``prev_sample``. [num_rows, C, H, W]
        """
        time, call = divmod(self._index, self._calls)
        self._index += 1
        score = -prediction / float(sigma)
        if call < self._calls - 1:
            alone = [None] * len(sample) if generator is None else generator
            parts = zip(score.split(1), sample.split(1), alone, strict=True)
            rows = [self._inner.step_correct(s, x, generator=g).prev_sample for s, x, g in parts]
            return SimpleNamespace(prev_sample=torch.cat(rows))
        found = self._inner.step_pred(score, self._inner.timesteps[time], sample, generator=generator)
        last = self._index == len(self.timesteps)
        return SimpleNamespace(prev_sample=found.prev_sample_mean if last else found.prev_sample)


class ScoreDenoiser(Denoiser):
    """A network of scores, unconditional: what it denoises are images in [0, 1], of items in [-1, 1] as everywhere.

    Args:
        network: Called as ``network(x_t, sigma)``; returns the score or an object with ``.sample``. In eval mode.
        scheduler: A ``ScoreSdeVeScheduler``.

    Raises:
        ValueError: As ``Denoiser``.
    """

    def __init__(self, network: nn.Module, scheduler: Any) -> None:
        super().__init__(network, scheduler)
        self.scheduler = PredictorCorrector(scheduler)

    def schedule_of(self, scheduler: Any) -> Schedule:
        """Return the schedule of exploding variance, see ``Denoiser.schedule_of``."""
        return VarianceExploding(scheduler)

    @property
    def is_latent(self) -> bool:
        """True: trajectories are in [0, 1]."""
        return True

    def encode_images(self, images: Tensor, ids: Ids) -> Tensor:
        """Return images in [0, 1], see ``Denoiser.encode_images``."""
        return (images + 1) / 2

    def decode(self, x0: Tensor) -> Tensor:
        """Return images in [-1, 1], see ``Denoiser.decode``."""
        return (2 * x0 - 1).clamp(-1, 1)

    def fingerprint(self) -> dict[str, Any]:
        """Return the range of the images, see ``Denoiser.fingerprint``."""
        return {"range": [0, 1]}

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        score = super()._call(x_t, times.to(x_t.dtype), condition)
        return -score * times.to(score.dtype).view(-1, *(1,) * (score.dim() - 1))
