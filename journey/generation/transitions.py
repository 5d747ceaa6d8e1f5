"""Sharp transitions: the steps of a generation in which a feature of the image is decided."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from journey.files.tensors import read_tensors, write_tensors
from journey.generation.completions import Completer
from journey.generation.likelihood import Rise, find_rise, isotonic, wilson_band
from journey.generation.trajectory import Trajectory
from journey.models.load import as_denoiser
from journey.models.schedules import Interval
from journey.ops.keys import derive_key

_FIRST_STEPS = 6  # where no steps are given
_RESAMPLES = 1000
_TENSORS = ("timesteps", "outcomes", "bootstrap")


@dataclass(frozen=True)
class Transition:
    """The likelihood of a feature among the completions from each step, and where it rises.

    Attributes:
        timesteps: The steps that were looked at, descending, int64. [num_steps]
        outcomes: What the classifier said of each completion, in [0, 1], float64. [num_steps, completions]
        confidence: Of all bands.
        bootstrap: Interval and midpoint (t0, t1, midpoint) of the fits to resampled completions; NaN where a resampled
            curve does not rise. float64. [num_resamples, 3]
    """

    timesteps: Tensor
    outcomes: Tensor
    confidence: float
    bootstrap: Tensor

    @property
    def likelihood(self) -> Tensor:
        """Fraction of the completions that have the feature, float64. [num_steps]"""
        return self.outcomes.mean(1)

    @property
    def band(self) -> tuple[Tensor, Tensor]:
        """Wilson's lower and upper confidence bounds of the likelihood at each step, float64. Each [num_steps]"""
        trials = torch.full((len(self.outcomes),), self.outcomes.shape[1], dtype=torch.int64, device="cpu")
        return wilson_band(self.outcomes.sum(1), trials, self.confidence)

    @property
    def fitted(self) -> Tensor:
        """The likelihood made non-decreasing along the generation by isotonic regression, float64. [num_steps]"""
        return isotonic(self.likelihood, torch.ones(len(self.timesteps), dtype=torch.float32, device="cpu"))

    @property
    def found(self) -> bool:
        """Whether the likelihood rises: the bands of the first and the last step do not overlap."""
        lower, upper = self.band
        return bool(lower[-1] > upper[0])

    @property
    def interval(self) -> Interval:
        """The timesteps (t0, t1), t1 excluded, that were sampled while the fit rose from a quarter to three quarters.

        The first of them begins at the last latent with less than a quarter of the rise, and the last of them ends at
        the first latent with three quarters. It can be given to ``journey.score`` as ``interval``.

        Raises:
            ValueError: If the likelihood does not rise.
        """
        rise = self._rise()
        return rise.after + 1, rise.before + 1

    @property
    def midpoint(self) -> float:
        """The timestep at which the fit has made half of its rise; raises as ``interval`` does."""
        return self._rise().midpoint

    def _rise(self) -> Rise:
        rise = find_rise(self.timesteps.tolist(), self.fitted)
        if rise is None or not self.found:
            first, last = (f"{self.likelihood[i]:.2f} at timestep {self.timesteps[i]}" for i in (0, -1))
            raise ValueError(
                f"there is no transition: the likelihood goes from {first} to {last}, with overlapping bands. Take "
                "more completions or a wider range of steps, or a classifier of a feature that the image ends with"
            )
        return rise

    @property
    def uncertainty(self) -> Tensor:
        """Bootstrap confidence bounds of t0, t1 and the midpoint; rows are lower and upper, float64. [2, 3]"""
        tail = (1 - self.confidence) / 2
        return self.bootstrap.nanquantile(torch.tensor([tail, 1 - tail], dtype=torch.float64, device="cpu"), dim=0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the transition as one safetensors file; equal ones give equal bytes."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors["confidence"] = torch.tensor(self.confidence, dtype=torch.float64, device="cpu")
        write_tensors(path, "transition", tensors)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Transition:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Returns:
            The transition.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds something else.
        """
        saved = read_tensors(path, "transition", (*_TENSORS, "confidence"))
        return Transition(confidence=saved["confidence"].item(), **{name: saved[name] for name in _TENSORS})


def transitions(
    pipeline: Any,
    trajectory: Trajectory,
    classifier: Callable[[Tensor], Any],
    *,
    query: int = 0,
    steps: Sequence[int] | None = None,
    completions: int = 16,
    refine: int = 4,
    num_inference_steps: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 64,
    progress: bool = True,
) -> Transition:
    """Find the steps in which a feature of a generated image is decided.

    From the latent x_t at each of some steps the model completes the image several times, with fresh noise in every
    step. The fraction of completions with the feature is its likelihood given x_t; along the generation it often rises
    from chance to one within few steps. After the first steps the largest rise of the fitted curve is halved again and
    again, so that completions are spent where they tell most.

    Args:
        pipeline: The model, as for ``journey.record``.
        trajectory: The generated images.
        classifier: Called with completions in [-1, 1], float32 [n, C, H, W], on the CPU; returns for each whether it
            has the feature: bool, or a probability in [0, 1]. [n]
        query: Which generated image.
        steps: Recorded timesteps to begin with; by default 6, evenly spread from the first to the last.
        completions: Completions per step.
        refine: Further steps, each between two whose fitted likelihood differs most.
        num_inference_steps: Steps of the completions' sampler, the trajectory's by default; fewer are faster, and only
            the recorded timesteps that it visits are looked at.
        seed: Names the completions' noise.
        confidence: Of all bands.
        batch_size: Completions that go through the model at once.
        progress: Show a progress bar.

    Returns:
        The likelihood at each step with its band, and the interval in which it rises. Equal seeds repeat it.

    Raises:
        ValueError: If a step was not recorded or is not visited by the sampler, an argument is out of range, or the
            classifier's answer is not one number in [0, 1] for each image.
        TypeError: If the model has an unknown form.

    Reference:
        Georgiev et al., "The Journey, Not the Destination: How Data Guides Diffusion Models", 2023.
    """
    if not 0 <= query < trajectory.num_queries:
        raise ValueError(f"query must be in 0..{trajectory.num_queries - 1}, got {query}")
    if completions < 2 or refine < 0:
        raise ValueError(f"completions must be at least 2 and refine at least 0, got {completions} and {refine}")
    nothing = torch.zeros(1, dtype=torch.float32, device="cpu")
    wilson_band(nothing, nothing + 1, confidence)  # refuses a confidence out of range before the work
    completer = Completer(
        as_denoiser(pipeline),
        trajectory,
        seed=seed,
        num_inference_steps=num_inference_steps,
        batch_size=batch_size,
    )
    chosen = _spread(completer.timesteps) if steps is None else sorted({int(t) for t in steps}, reverse=True)
    completer.check_steps(chosen)
    if len(chosen) < 2:
        raise ValueError(f"steps must be two or more, got {chosen}")

    found: dict[int, Tensor] = {}
    total = (len(chosen) + refine) * completions
    with tqdm(total=total, unit="completion", desc="transitions", disable=not progress, dynamic_ncols=True) as bar:
        for _ in range(len(chosen) + refine):
            t = chosen[len(found)] if len(found) < len(chosen) else _between(completer.timesteps, found)
            if t is None:
                break
            images = completer.complete(query, t, range(completions))
            found[t] = _classify(classifier, completer.to_pictures(images))
            bar.update(completions)
    timesteps = sorted(found, reverse=True)
    outcomes = torch.stack([found[t] for t in timesteps])
    return Transition(
        torch.tensor(timesteps, dtype=torch.int64, device="cpu"),
        outcomes,
        confidence,
        _bootstrap(timesteps, outcomes, seed),
    )


def _spread(candidates: list[int]) -> list[int]:
    """The first and the last step and some evenly between."""
    count = min(_FIRST_STEPS, len(candidates))
    return [candidates[round(i * (len(candidates) - 1) / max(1, count - 1))] for i in range(count)]


def _between(candidates: list[int], found: dict[int, Tensor]) -> int | None:
    """The step in the middle of the largest rise that has one, or None."""
    looked_at = sorted(found, reverse=True)
    fitted = isotonic(
        torch.stack([found[t].mean() for t in looked_at]), torch.ones(len(looked_at), dtype=torch.float32, device="cpu")
    ).tolist()
    gaps = []
    for i in range(1, len(looked_at)):
        inside = [t for t in candidates if looked_at[i] < t < looked_at[i - 1]]
        if inside and fitted[i] > fitted[i - 1]:
            gaps.append((fitted[i] - fitted[i - 1], len(inside), inside[len(inside) // 2]))
    return max(gaps)[2] if gaps else None


def _classify(classifier: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """The classifier's answers as numbers in [0, 1], float64. [num_images]"""
    answers = torch.as_tensor(classifier(images), dtype=torch.float64, device="cpu").detach()
    if answers.shape != (len(images),) or not bool(((answers >= 0) & (answers <= 1)).all()):
        raise ValueError(
            f"classifier must return one bool or probability in [0, 1] for each of {len(images)} images, got "
            f"{list(answers.shape)}" + (f" from {answers.min():g} to {answers.max():g}" if answers.numel() else "")
        )
    return answers


def _bootstrap(timesteps: list[int], outcomes: Tensor, seed: int) -> Tensor:
    """Interval and midpoint when every step's completions are drawn anew from those there are. [_RESAMPLES, 3]"""
    generator = torch.Generator("cpu").manual_seed(derive_key(seed, "bootstrap"))
    num_steps, count = outcomes.shape
    picks = torch.randint(count, (_RESAMPLES, num_steps, count), generator=generator, dtype=torch.int64, device="cpu")
    curves = outcomes.expand(_RESAMPLES, -1, -1).gather(2, picks).mean(2)
    rows = []
    for curve in curves:
        rise = find_rise(timesteps, isotonic(curve, torch.ones(num_steps, dtype=torch.float32, device="cpu")))
        rows.append([float("nan")] * 3 if rise is None else [rise.after + 1, rise.before + 1, rise.midpoint])
    return torch.tensor(rows, dtype=torch.float64, device="cpu")
