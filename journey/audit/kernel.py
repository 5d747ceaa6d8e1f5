"""What training images do to one another: inner products of their rows in the damped metric, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from journey.curvature.gram import DEFAULT_DAMPING, GramMatrix
from journey.data.ids import Ids
from journey.features.features import Features
from journey.models.denoiser import Denoiser
from journey.scores.columns import noises, products
from journey.scores.queries import check_features
from journey.scores.score import check_damping

_BLOCK = 256  # rows that are solved at once: memory holds so many times the number of images


def check_pictures(denoiser: Denoiser) -> None:
    """Refuse a model of videos or sounds, which are not compared as pictures; ValueError names which."""
    size = denoiser.sample_size
    if size is not None and len(size) != 2:
        made = "sounds" if len(size) == 1 else "videos"
        raise ValueError(f"features must be of a model of images, got one of {made}")


@dataclass(frozen=True)
class KernelBlock:
    """Some rows of the kernel.

    Attributes:
        first: Position of the first row.
        values: ``K[i, j]`` of these rows with all, float64. [num_rows, num_train]
        errors: Their standard errors by the draws of both sides, at most, float64. [num_rows, num_train]
    """

    first: int
    values: Tensor
    errors: Tensor


@dataclass(frozen=True, eq=False)
class Kernel:
    """``K[i, j] = phi_i^T (M + damping I)^-1 phi_j`` of the training images, mean over checkpoints.

    To first order ``K[i, j] / unit`` is how much the loss of image i rises when image j is left out of training, be it
    i itself (``own``). Different images have draws of their own, so that ``K[i, j]`` is unbiased. A row with itself is
    not: noise e of the row adds ``E[e^T (M + damping I)^-1 e]``. Half the difference of two disjoint halves of a row's
    draws has the covariance of e, so ``own`` is without the norm that such differences have. Halves are of other
    timesteps too: what is taken off is at most too much.

    Attributes:
        features: The training images.
        damping: Ridge in mean diagonals of the Gram matrix.
        own: ``K[i, i]`` without the noise's part, float64. [num_train]
        own_errors: Its standard error, at most, float64. [num_train]
        squares: ``K[i, i]`` as measured, with the noise's part, float64. [num_train]
    """

    features: Features
    damping: float
    own: Tensor
    own_errors: Tensor
    squares: Tensor
    _noise: Tensor = field(repr=False)  # [num_checkpoints, num_train]
    _gain: Tensor = field(repr=False)  # [num_checkpoints, num_train]
    _mean_gain: Tensor = field(repr=False)  # of the mean solved row [num_checkpoints]

    @staticmethod
    def of(features: Features, damping: float = DEFAULT_DAMPING) -> Kernel:
        """Measure the diagonal, with what errors are made of: one pass over the rows.

        Args:
            features: The training images, from ``journey.featurize``.
            damping: As for ``journey.score``.

        Returns:
            The kernel.

        Raises:
            TypeError: If ``features`` is a path.
            ValueError: If ``damping`` is not a number >= 0, or there are fewer than three images.
            FileNotFoundError: If the fit has no Gram matrix.
        """
        check_features(features)
        check_damping(damping)
        if features.num_samples < 3:
            raise ValueError(f"features must be of at least three images to compare them, got {features.num_samples}")
        noise = noises(features)[0].double()
        if not noise.isfinite().all():
            raise ValueError(
                "features must know the noise of their rows, which takes two independent halves of the draws, such as "
                "the default StratifiedDraws(20); these do not"
            )
        own, errors, measured, gains, means = [], [], [], [], []
        for number in range(len(features.checkpoints)):
            gram = features.fit.gram(number)
            bias, spread = _of_noise(gram, damping)
            parts, total = [], torch.zeros(1, gram.noise.shape[1], dtype=torch.float64, device="cpu")
            for _, rows in features.blocks(number):
                for some in rows.split(_BLOCK):
                    solved = gram.solve(some, damping)
                    total += solved.sum(0)
                    parts.append(torch.stack([(solved * some).sum(1), gram.row_errors(solved)]))
            squares, gain = torch.cat(parts, 1)
            measured.append(squares)
            own.append(squares - noise[number].square() * bias)
            # Linear in the noise, and its square about the mean.
            errors.append(torch.hypot(2 * noise[number] * gain, noise[number].square() * spread))
            gains.append(gain)
            means.append(gram.row_errors(total / features.num_samples)[0])
        parts_of = (own, errors, measured)
        diagonal, spreads, whole = (torch.stack(part).mean(0) for part in parts_of)
        return Kernel(features, float(damping), diagonal, spreads, whole, noise, torch.stack(gains), torch.stack(means))

    @property
    def ids(self) -> Ids:
        """Ids of the images, in the order of rows."""
        return self.features.ids

    @property
    def lengths(self) -> Tensor:
        """Lengths of the rows in the damped metric, float64. [num_train]

        At most half of the square is taken off for the noise: of images whose halves of draws differ much by their
        timesteps, more would be too much, and their cosines above one.
        """
        return torch.maximum(self.own, self.squares / 2).sqrt()

    @property
    def known(self) -> Tensor:
        """Which rows are more than the noise of their draws. [num_train]"""
        return (self.squares > 2 * self.own_errors) & (self.squares > 0)

    @property
    def unit(self) -> float:
        """What divides a value to give a change of loss: images times mean diagonal of the Gauss-Newton matrix.

        That matrix sets the unit of M, whose mean diagonal is one.
        """
        means = [float(self.features.fit.gram(number).parts[1, 2]) for number in range(len(self.features.checkpoints))]
        return self.features.num_samples * sum(means) / len(means)

    def mean_errors(self) -> Tensor:
        """Return the standard error of the mean of each column over the other images, float64. [num_train]"""
        others = self._noise.square().sum(1, keepdim=True) - self._noise.square()
        theirs = self._gain * others.sqrt() / (self.features.num_samples - 1)
        return torch.hypot((self._noise * self._mean_gain[:, None]).mean(0), theirs.mean(0))

    def blocks(self) -> Iterator[KernelBlock]:
        """Yield all rows of the kernel, some at a time: memory holds 256 rows and one shard."""
        features, count = self.features, len(self.features.checkpoints)
        weights = features.draws.weights(features.featurizer.denoiser.num_train_timesteps)
        first = 0
        for several in zip(*(features.blocks(number) for number in range(count)), strict=True):
            rows = torch.stack([found for _, found in several])
            for some in rows.split(_BLOCK, 1):
                solved = [features.fit.gram(n).solve(some[n], self.damping).float()[:, None] for n in range(count)]
                here = slice(first, first + some.shape[1])
                values = products(features, solved, weights)[:, 0].double()
                errors = torch.hypot(
                    (self._gain[:, here, None] * self._noise[:, None]).mean(0),
                    (self._noise[:, here, None] * self._gain[:, None]).mean(0),
                )
                yield KernelBlock(first, values, errors)
                first += some.shape[1]


def _of_noise(gram: GramMatrix, damping: float) -> tuple[float, float]:
    """Mean and standard deviation of ``e^T (M + damping I)^-1 e`` for noise e of unit norm in the mean square."""
    directions = gram.noise.double()
    kernel = directions @ gram.solve(directions, damping).T
    scale = kernel.new_tensor(directions.square().sum(1).mean().item())
    count = len(directions)
    mean = kernel.trace() / count / scale
    # tr((K^-1 C)^2) by pairs of independent draws; of Gaussian noise the variance is twice that.
    pairs = (kernel.square().sum() - kernel.diagonal().square().sum()) / max(1, count * (count - 1))
    return mean.item(), (2 * pairs).sqrt().item() / scale.item()
