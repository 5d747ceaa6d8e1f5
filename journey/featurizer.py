"""The measurement of a batch of images: noise them, run the denoiser, project each image's gradient.

Training images and queries go through the same code, so that their features can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from journey.condition import Condition
from journey.errors import NonFiniteGradientError
from journey.gradients import GradientEngine, Values
from journey.layer_gauge import LayerSizes, find_fault, gauge_layers
from journey.layer_rules import Contribution
from journey.measurements import Measurement, Prediction
from journey.models.base import Denoiser
from journey.projectors import ParameterSlot, Projector
from journey.row_gradients import squared_norms

# Which parameters are measured: a function of the name, or patterns such as "*.attn*.to_k.*" of which one must match.
Selection = Callable[[str], bool] | str | Sequence[str]


class Featurizer:
    """Features of images under the denoiser's current weights.

    Args:
        denoiser: The model and its schedule.
        measurement: What is differentiated.
        projector: Maps gradients to features.
        select: Which trainable parameters are measured: a function of the name, or one or several glob patterns such as
            ``"*.attn*.to_k.*"``; all by default. With LoRA layers these are the adapters': peft freezes the others.
        uncovered: What to do about parameters without a gradient rule, see ``journey.gradients.GradientEngine``.

    Raises:
        CoverageError: If parameters are not covered, see ``journey.gradients.GradientEngine``.
        ValueError: If a pattern matches no trainable parameter.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        measurement: Measurement,
        projector: Projector,
        select: Selection | None = None,
        uncovered: Literal["error", "autograd"] = "error",
    ) -> None:
        self.denoiser = denoiser
        self.measurement = measurement
        self.projector = projector
        chosen = selector(select, denoiser)
        self.engine = GradientEngine(denoiser.network, select=chosen, uncovered=uncovered)

    @property
    def features_dim(self) -> int:
        """Length of the features."""
        return self.projector.features_dim(self.engine.num_parameters)

    def change(self, *, measurement: Measurement | None = None, projector: Projector | None = None) -> Featurizer:
        """Return a featurizer of the same model and parameters with another measurement or projector."""
        other = copy(self)
        other.measurement = measurement or self.measurement
        other.projector = projector or self.projector
        return other

    def features(
        self,
        images: Tensor,  # [num_samples, C, H, W]
        timesteps: Tensor,  # [num_samples, bins, num_draws]
        noise: Tensor,  # [num_samples, bins, num_draws, C, H, W]
        *,
        condition: Condition | None = None,
        mask: Tensor | None = None,  # [num_samples, 1, H, W]
        weights: Tensor | None = None,  # [num_samples, bins, num_draws]
        ids: list[int] | None = None,
        check: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Measure each image: per bin, the projected gradient of the mean measurement over the draws.

        ``features[i, b] = projector(grad of mean_d measurement(images[i], timesteps[i, b, d], noise[i, b, d]))``

        All draws of all images go through the denoiser in one batch.

        Args:
            images: Clean images in the model's range, float32. [num_samples, C, H, W]
            timesteps: int64. [num_samples, bins, num_draws]
            noise: float32. [num_samples, bins, num_draws, C, H, W]
            condition: What the network is told, one row per sample, or one per sample, bin and draw in this order.
            mask: Restricts the measurement to a region of each image, which needs a ``PixelMeasurement``; None is the
                whole image. [num_samples, 1, H, W]
            weights: How much each draw counts in the mean over its bin (``Draws.row_weights``); None is one each.
                [num_samples, bins, num_draws]
            ids: Names the images in errors.
            check: Also compare with autograd's gradient of the whole batch, which costs one training step.

        Returns:
            Features, float32 [num_samples, bins, proj_dim], and the mean measurements, float32 [num_samples, bins], on
            the model's device.

        Raises:
            ValueError: If ``condition`` has another number of rows.
            NonFiniteGradientError: If a gradient or a value is NaN or infinite; names the images, and the timestep and
                the layer in which it begins.
            GradientCheckError: If the check fails.

        Reference:
            Georgiev et al., "The Journey, Not the Destination", 2023, section 3; there gradients are summed over draws,
            a constant factor.
        """
        num_samples, bins, num_draws = timesteps.shape
        num_rows = timesteps.numel()
        values = self._values(images, timesteps, noise, condition, mask, weights)
        features = torch.zeros(num_samples * bins, self.features_dim, device=self.denoiser.device)
        measured = self.engine.add_gradients_(features, values, num_rows=num_rows, projector=self.projector)
        averages = measured.view(num_samples, bins, num_draws).mean(-1)
        features = features.view(num_samples, bins, -1)
        finite = torch.isfinite(features).all(-1) & torch.isfinite(averages)
        if not finite.all():
            where = (~finite.all(-1)).nonzero().flatten().tolist()
            names = [str(ids[i] if ids is not None else i) for i in where]
            rows = range(where[0] * bins * num_draws, (where[0] + 1) * bins * num_draws)
            fault = find_fault(self.engine, values, rows)
            begun = ""
            if fault is not None:
                at = f"sample {names[0]} at timestep {int(timesteps.flatten()[fault.row])}"
                begun = f". It begins in {at}: the {fault.part} of layer {fault.layer!r}"
            raise NonFiniteGradientError(
                f"gradients are NaN or infinite for sample{'s' if len(names) > 1 else ''} {', '.join(names[:16])}; "
                f"nothing of them was kept{begun}. Check the model's weights and the images; a float16 model may need "
                "bfloat16 or float32"
            )
        if check:
            self.engine.check(features.flatten(0, 1), values, num_rows=num_rows, projector=self.projector)
        return features, averages

    def layer_sizes(
        self,
        images: Tensor,  # [num_samples, C, H, W]
        timesteps: Tensor,  # [num_samples, bins, num_draws]
        noise: Tensor,  # [num_samples, bins, num_draws, C, H, W]
        *,
        condition: Condition | None = None,
        weights: Tensor | None = None,  # [num_samples, bins, num_draws]
    ) -> LayerSizes:
        """Measure how large the gradients of each layer are that ``features`` would project.

        Args:
            images: As for ``features``. [num_samples, C, H, W]
            timesteps: Likewise. [num_samples, bins, num_draws]
            noise: Likewise. [num_samples, bins, num_draws, C, H, W]
            condition: Likewise.
            weights: Likewise.

        Returns:
            Norms and largest entries, one group for each image and bin, bins fastest.
        """
        values = self._values(images, timesteps, noise, condition, None, weights)
        num_groups = timesteps.shape[0] * timesteps.shape[1]
        return gauge_layers(self.engine, values, num_rows=timesteps.numel(), num_groups=num_groups)

    def norms(
        self,
        images: Tensor,  # [num_samples, C, H, W]
        timesteps: Tensor,  # [num_samples, bins, num_draws]
        noise: Tensor,  # [num_samples, bins, num_draws, C, H, W]
        *,
        condition: Condition | None = None,
        mask: Tensor | None = None,  # [num_samples, 1, H, W]
    ) -> Tensor:
        """Return the exact norm of the gradient of every draw's measurement, parameter by parameter.

        Nothing is projected. The norm of the whole gradient is ``norms.norm(dim=-1)``; the parameters' names are the
        keys of ``engine.slots``, in this order. Memory: as for ``features``, and inputs and output gradients of layers
        that are called several times.

        Args:
            images: As for ``features``.
            timesteps: As for ``features``.
            noise: As for ``features``.
            condition: As for ``features``.
            mask: As for ``features``.

        Returns:
            Norms, float32, on the model's device; NaN or infinite where the gradient is.
            [num_samples, bins, num_draws, num_parameters]

        Raises:
            ValueError: If ``condition`` has another number of rows.
        """
        values = self._values(images, timesteps, noise, condition, mask, None)
        num_rows, columns = timesteps.numel(), {name: i for i, name in enumerate(self.engine.slots)}
        norms = torch.zeros(num_rows, len(columns), device=self.denoiser.device)

        def measure(slot: ParameterSlot, contributions: list[Contribution]) -> None:
            norms[:, columns[slot.name]] = squared_norms(slot, contributions, num_rows).sqrt()

        self.engine.hand_out(values, num_rows=num_rows, num_groups=num_rows, receive=measure)
        return norms.view(*timesteps.shape, -1)

    def _values(
        self,
        images: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        condition: Condition | None,
        mask: Tensor | None,
        weights: Tensor | None,
    ) -> Values:
        """The measurement of rows of the batch of all draws of all images."""
        num_samples, num_rows = len(images), timesteps.numel()
        each, device = num_rows // num_samples, self.denoiser.device
        x0 = images.to(device).repeat_interleave(each, 0)
        times = timesteps.reshape(-1).to(device)
        epsilon = noise.reshape(num_rows, *images.shape[1:]).to(device)
        masks = None if mask is None else mask.to(device).repeat_interleave(each, 0)
        x_t = self.denoiser.add_noise(x0, epsilon, times)
        target = self.denoiser.target(x0, epsilon, times)
        told = None if condition is None else _per_row(condition, num_samples, num_rows).to(device)
        factors = None if weights is None else weights.reshape(num_rows).to(device)

        def values(rows: slice) -> Tensor:
            part = None if masks is None else masks[rows]
            given = None if told is None else told.select(rows)
            prediction = self.denoiser.predict(x_t[rows], times[rows], given)
            found = self.measurement(
                Prediction(
                    prediction,
                    target[rows],
                    x0[rows],
                    x_t[rows],
                    epsilon[rows],
                    times[rows],
                    self.denoiser.schedule,
                    part,
                )
            )
            return found if factors is None else found * factors[rows]

        return values


def selector(select: Selection | None, denoiser: Denoiser) -> Callable[[str], bool] | None:
    """The selection as a function of the name."""
    if select is None or callable(select):
        return select
    patterns = [select] if isinstance(select, str) else list(select)
    names = [name for name, p in denoiser.network.named_parameters() if p.requires_grad]
    unused = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    if unused or not patterns:
        raise ValueError(
            f"select must be patterns of trainable parameters, got {', '.join(map(repr, unused)) or 'none'} that match "
            f"none of {len(names)}, such as {', '.join(names[:3])}"
        )
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def _per_row(condition: Condition, num_samples: int, num_rows: int) -> Condition:
    if len(condition) not in (num_samples, num_rows):
        raise ValueError(
            f"condition must have {num_samples} rows, one per sample, or {num_rows}, one per draw, got {len(condition)}"
        )
    return condition if len(condition) == num_rows else condition.repeat(num_rows // num_samples)
