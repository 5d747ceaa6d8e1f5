"""The noise schedules of EDM, whose networks are preconditioned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.files.fingerprint import fingerprint_tensors
from journey.models.schedules import Schedule


class Edm(Schedule):
    """``x_t = (x0 + s_t noise) / sqrt(s_t^2 + sigma_data^2)`` with a preconditioned network: EDM.

    The network's answer F stands for the image ``sigma_data^2 signal x_t + sigma_data sigma F``, under
    ``v_prediction`` for ``sigma_data^2 signal x_t - sigma_data sigma F``. The target is the F of the image itself, so
    that the mean square has EDM's own weights; diffusers' script takes that of images instead. Noise levels are those
    that the script draws from: the first ``num_train_timesteps`` of the scheduler's table.

    Args:
        scheduler: An ``EDMEulerScheduler`` or an ``EDMDPMSolverMultistepScheduler``.

    Raises:
        ValueError: If its prediction type is another than ``epsilon`` and ``v_prediction``, or torch's default dtype
            has fewer than 32 bits.

    Reference:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, Eq. 7 and
        Table 1.
    """

    def __init__(self, scheduler: Any) -> None:
        told = scheduler.config.prediction_type
        if told not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type of an EDM scheduler must be epsilon or v_prediction, got {told!r}")
        self.prediction_type = f"edm_{told}"
        self._sign = 1.0 if told == "epsilon" else -1.0
        self._sigma_data = float(scheduler.config.sigma_data)
        self.num_train_timesteps = int(scheduler.config.num_train_timesteps)
        if torch.get_default_dtype().itemsize < 4:  # in which diffusers makes the table
            raise ValueError(
                f"torch's default dtype must be float32 or float64 for the levels of a {type(scheduler).__name__}, "
                f"which {torch.get_default_dtype()} would round; call torch.set_default_dtype(torch.float32)"
            )
        # As for flow matching: fresh, in descending order.
        with torch.device("cpu"):
            table = type(scheduler).from_config(scheduler.config).sigmas
        self._ratios: Tensor = table[: self.num_train_timesteps].flip(0).double()

    def signal_and_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``1 / sqrt(s_t^2 + sigma_data^2)`` and ``s_t`` times that, see ``Schedule.signal_and_sigma``."""
        ratio = self._ratios[timesteps.cpu()]
        signal = (ratio.square() + self._sigma_data**2).rsqrt()
        return signal.float().to(timesteps.device), (ratio * signal).float().to(timesteps.device)

    def network_time(self, timesteps: Tensor) -> Tensor:
        """Return ``log(s_t) / 4``, float32. [num_rows]"""
        return self._times(self._ratios)[timesteps.cpu()].float().to(timesteps.device)

    def _times(self, ratios: Tensor) -> Tensor:
        """What the network is told of levels ``s_t``, float64. [num_levels]"""
        return ratios.log() / 4

    def nearest(self, times: Tensor) -> list[int]:
        """Return the timesteps whose network times are nearest, see ``Schedule.nearest``."""
        apart = times.detach().double().cpu()[:, None] - self._times(self._ratios)[None]
        return [int(i) for i in apart.abs().argmin(1)]

    def level(self, sampler: Any, index: int) -> tuple[float, float]:
        """Take the ratio of noise to signal from the sampler's table, see ``Schedule.level``."""
        ratio = float(sampler.sigmas[index])
        signal = (ratio**2 + self._sigma_data**2) ** -0.5
        return signal, ratio * signal

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network must answer for the image, see ``Schedule.target``."""
        signal, sigma = self.factors(timesteps, x0)
        return self._sign * (sigma / self._sigma_data * x0 - self._sigma_data * signal * noise)

    def invert(self, prediction: Tensor, x_t: Tensor, signal: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Return the image that an answer stands for, see ``Schedule.invert``."""
        kept = self._sigma_data**2 * signal * x_t
        return kept + self._sign * self._sigma_data * sigma * prediction

    def fingerprint(self) -> str:
        """Hash the ratios of noise to signal, and the deviation of the data."""
        data = torch.tensor(self._sigma_data, dtype=torch.float64, device="cpu")
        return fingerprint_tensors({"ratios": self._ratios, "sigma_data": data})


class CosineEdm(Edm):
    """EDM whose network is told the angle of a level, ``2 / pi atan(s_t)`` in (0, 1): Stable Audio.

    With ``sigma_data`` of one these are latents ``cos(a) x0 + sin(a) noise`` and, under ``v_prediction``, the target
    ``cos(a) noise - sin(a) x0``. The scheduler's table is even in log s_t; the network's trainer draws angles evenly.
    """

    def _times(self, ratios: Tensor) -> Tensor:
        return ratios.atan() * 2 / torch.pi
