"""The noise schedules that diffusers' schedulers were trained with: variance preserving, flow matching, EDM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from journey.files.fingerprint import fingerprint_tensors
from journey.models.edm import CosineEdm, Edm
from journey.models.schedules import PREDICTION_TYPES, Schedule


class VariancePreserving(Schedule):
    """``x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise``: DDPM and its relatives.

    Args:
        scheduler: A diffusers scheduler with ``alphas_cumprod`` and ``config.prediction_type``.

    Raises:
        TypeError: If the scheduler does not tell its prediction type.
        ValueError: If that is not one of ``PREDICTION_TYPES``.

    Reference:
        Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, Eq. 4; Salimans and Ho, "Progressive
        Distillation for Fast Sampling of Diffusion Models", ICLR 2022, appendix D, for ``v_prediction``.
    """

    def __init__(self, scheduler: Any) -> None:
        told = getattr(getattr(scheduler, "config", None), "prediction_type", None)
        if told is None:
            raise TypeError(
                "scheduler must tell config.prediction_type, as those of diffusers do, "
                f"{type(scheduler).__name__} does not"
            )
        self.prediction_type = str(told)
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type of the scheduler must be one of {', '.join(PREDICTION_TYPES)}, "
                f"got {self.prediction_type!r}"
            )
        # Euler's scheduler tells networks that predict v 0.25 log(sigma / signal) where it is asked to.
        self._continuous = told == "v_prediction" and getattr(scheduler.config, "timestep_type", "") == "continuous"
        self._table = scheduler.alphas_cumprod.detach().clone().cpu()
        self._alphas_cumprod = self._table.double()
        self.num_train_timesteps = len(self._table)

    def signal_and_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``sqrt(abar_t)`` and ``sqrt(1 - abar_t)``, see ``Schedule.signal_and_sigma``."""
        alphas = self._alphas_cumprod[timesteps.cpu()]
        return alphas.sqrt().float().to(timesteps.device), (1 - alphas).sqrt().float().to(timesteps.device)

    def network_time(self, timesteps: Tensor) -> Tensor:
        """Return the timesteps themselves, or in continuous time ``log(sigma_t / signal_t) / 4``. [num_rows]"""
        if not self._continuous:
            return timesteps
        return self._continuous_times()[timesteps.cpu()].float().to(timesteps.device)

    def _continuous_times(self) -> Tensor:
        """The continuous time of every timestep, float64. [num_train_timesteps]"""
        times: Tensor = ((1 - self._alphas_cumprod) / self._alphas_cumprod).log() / 8
        return times

    def nearest(self, times: Tensor) -> list[int]:
        """Round, or look continuous times up, see ``Schedule.nearest``."""
        if self._continuous:
            apart = times.detach().double().cpu()[:, None] - self._continuous_times()[None]
            return [int(i) for i in apart.abs().argmin(1)]
        return [round(float(t)) for t in times]

    def level(self, sampler: Any, index: int) -> tuple[float, float]:
        """Take sigma from the sampler's own table if it has one, see ``Schedule.level``."""
        if len(getattr(sampler, "sigmas", ())) > len(sampler.timesteps):
            # These tables hold the ratio of noise to signal.
            ratio = float(sampler.sigmas[index])
            signal = (1 + ratio**2) ** -0.5
            return signal, ratio * signal
        alpha = float(self._alphas_cumprod[int(sampler.timesteps[index])])
        return alpha**0.5, (1 - alpha) ** 0.5

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise, the image or the velocity, see ``Schedule.target``."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        signal, sigma = self.factors(timesteps, x0)
        return signal * noise - sigma * x0

    def invert(self, prediction: Tensor, x_t: Tensor, signal: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Solve the target for the image, see ``Schedule.invert``."""
        if self.prediction_type == "epsilon":
            return (x_t - sigma * prediction) / signal
        if self.prediction_type == "sample":
            return prediction
        return signal * x_t - sigma * prediction

    def fingerprint(self) -> str:
        """Hash ``alphas_cumprod``, and continuous times where the network is told those."""
        times = {"times": self._continuous_times()} if self._continuous else {}
        return fingerprint_tensors({"alphas_cumprod": self._table, **times})


class FlowMatching(Schedule):
    """``x_t = (1 - sigma_t) x0 + sigma_t noise`` with the velocity ``noise - x0`` as target: rectified flow.

    Sigma of timestep i is the scheduler's training table, (i + 1) / num_train_timesteps under its static ``shift``. A
    shift that depends on the resolution belongs to sampling and is not in that table.

    Args:
        scheduler: A ``FlowMatchEulerDiscreteScheduler``; or a solver with ``prediction_type="flow_prediction"``
            (DPM-Solver++, UniPC), whose table is that of the former with its ``flow_shift``.

    Raises:
        ValueError: If its sigmas are inverted, so that sigma multiplies the image, or a solver's are none of a flow.

    Reference:
        Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", ICML 2024, Eq. 13 and
        23.
    """

    prediction_type = "velocity"

    def __init__(self, scheduler: Any) -> None:
        if scheduler.config.get("invert_sigmas", False):
            raise ValueError("scheduler must have sigma = 1 for pure noise, got one with invert_sigmas")
        if _predicts_flow(scheduler):
            if not scheduler.config.get("use_flow_sigmas", False):
                raise ValueError("scheduler with flow_prediction must have use_flow_sigmas=True, got False")
            # Here, because diffusers versions without it remain usable for the rest.
            from diffusers import FlowMatchEulerDiscreteScheduler

            scheduler = FlowMatchEulerDiscreteScheduler(
                scheduler.config.num_train_timesteps, shift=scheduler.config.flow_shift
            )
        # A scheduler that was used to sample no longer has the training table; a fresh one does, in descending order.
        with torch.device("cpu"):
            self._sigmas: Tensor = type(scheduler).from_config(scheduler.config).sigmas.flip(0).float()
        self.num_train_timesteps = len(self._sigmas)

    def signal_and_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``1 - sigma_t`` and ``sigma_t``, see ``Schedule.signal_and_sigma``."""
        sigma = self._sigmas[timesteps.cpu()].to(timesteps.device)
        return 1 - sigma, sigma

    def network_time(self, timesteps: Tensor) -> Tensor:
        """Return ``sigma_t * num_train_timesteps``, float32. [num_rows]"""
        return (self._sigmas[timesteps.cpu()] * self.num_train_timesteps).to(timesteps.device)

    def nearest(self, times: Tensor) -> list[int]:
        """Return the timesteps with the nearest sigmas, see ``Schedule.nearest``."""
        sigmas = times.detach().float().cpu() / self.num_train_timesteps
        return [int(i) for i in (sigmas[:, None] - self._sigmas[None]).abs().argmin(1)]

    def level(self, sampler: Any, index: int) -> tuple[float, float]:
        """Take sigma from the sampler's table, see ``Schedule.level``."""
        sigma = float(sampler.sigmas[index])
        return 1 - sigma, sigma

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the velocity, see ``Schedule.target``."""
        return noise - x0

    def invert(self, prediction: Tensor, x_t: Tensor, signal: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Go back along the velocity, see ``Schedule.invert``."""
        return x_t - sigma * prediction

    def fingerprint(self) -> str:
        """Hash the sigmas."""
        return fingerprint_tensors({"sigmas": self._sigmas})


def as_schedule(scheduler: Any) -> Schedule:
    """Return the schedule that a diffusers scheduler was trained with.

    Args:
        scheduler: Any scheduler with ``alphas_cumprod``, a ``FlowMatchEulerDiscreteScheduler``, a solver with
            ``prediction_type="flow_prediction"``, or one of EDM.

    Returns:
        The schedule.

    Raises:
        TypeError: If the scheduler is none of these.
        ValueError: If its prediction type is unknown.
    """
    if _predicts_flow(scheduler):
        return FlowMatching(scheduler)
    if isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        return VariancePreserving(scheduler)
    # By name: diffusers versions without these schedulers remain usable for the rest.
    kinds = {kind.__name__ for kind in type(scheduler).__mro__}
    if "FlowMatchEulerDiscreteScheduler" in kinds:
        return FlowMatching(scheduler)
    if kinds & {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}:
        return Edm(scheduler)
    if "CosineDPMSolverMultistepScheduler" in kinds:
        return CosineEdm(scheduler)
    if kinds & set(_OTHERS):
        why = next(_OTHERS[kind] for kind in kinds if kind in _OTHERS)
        raise TypeError(
            f"scheduler must be one that a denoising loss was trained with, got {type(scheduler).__name__}: {why}"
        )
    raise TypeError(
        "scheduler must be a diffusers scheduler with alphas_cumprod (DDPMScheduler, DDIMScheduler, ...), a "
        f"FlowMatchEulerDiscreteScheduler, or one of EDM, got {type(scheduler).__name__}"
    )


# Schedulers whose networks or samplers are of another kind.
_OTHERS = {
    "ScoreSdeVeScheduler": "its network predicts a score, which is covered where it is told nothing else, in a pair or "
    "pipeline of unet and scheduler",
    "ScoreSdeVpScheduler": "its network predicts a score in continuous time, which is not covered",
    "KarrasVeScheduler": "its sampler corrects each step, which is not covered; EDMEulerScheduler is the one of EDM",
    "CMStochasticIterativeScheduler": "consistency models are trained by another loss than that of noised images",
    "FlowMatchHeunDiscreteScheduler": "give the FlowMatchEulerDiscreteScheduler of the same shift, which is the same "
    "schedule",
}


def _predicts_flow(scheduler: Any) -> bool:
    """Whether a scheduler of another family is set to flow matching."""
    return getattr(getattr(scheduler, "config", None), "prediction_type", None) == "flow_prediction"
