"""The measurement of a batch of images: noise them, run the denoiser, project each image's gradient.

Training images and queries go through the same code, so that their features can be compared.
"""

from __future__ import annotations

from copy import copy
from typing import Literal

import torch
from torch import Tensor

from journey.data.ids import Ids
from journey.errors import NonFiniteGradientError
from journey.gradients.check import check_gradients
from journey.gradients.engine import GradientEngine, RowValues
from journey.gradients.passes import RowBudget, groups_of, shifted, split_rows
from journey.gradients.rows import squared_norms
from journey.gradients.rules import Contribution
from journey.gradients.selection import Selection, selector
from journey.gradients.sizes import LayerSizes, find_fault, gauge_layers
from journey.measure.experts import Share, shares
from journey.measure.measurements import Measurement
from journey.measure.row_values import row_values
from journey.models.condition import Condition
from journey.models.denoiser import Denoiser
from journey.projectors.base import ParameterSlot, Projector


class Featurizer:
    """Features of images under the denoiser's current weights.

    Args:
        denoiser: The model and its schedule.
        measurement: What is differentiated.
        projector: Maps gradients to features.
        select: Which trainable parameters are measured: a function of the name, or one or several glob patterns such as
            ``"*.attn*.to_k.*"``; all by default. With LoRA layers these are the adapters': peft freezes the others.
        uncovered: What to do about parameters without a gradient rule, see ``journey.gradients.engine.GradientEngine``.
        rows_per_pass: How many rows (draws of images) go through the network at once, which changes features only by
            rounding; by default as many as memory is for (``RowBudget``).

    Raises:
        CoverageError: If parameters are not covered, see ``journey.gradients.engine.GradientEngine``.
        ValueError: If a pattern matches no trainable parameter, or ``rows_per_pass`` is not positive.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        measurement: Measurement,
        projector: Projector,
        select: Selection | None = None,
        uncovered: Literal["error", "autograd"] = "error",
        rows_per_pass: int | None = None,
    ) -> None:
        if rows_per_pass is not None and rows_per_pass < 1:
            raise ValueError(f"rows_per_pass must be positive, got {rows_per_pass}")
        self.denoiser = denoiser
        self.measurement = measurement
        self.projector = projector
        self.budget = RowBudget(denoiser.network, rows_per_pass)
        chosen = selector(select, denoiser.network)
        self.engine = GradientEngine(denoiser.network, select=chosen, uncovered=uncovered)
        self.engine.may_miss = bool(denoiser.boundaries)  # of several networks one may be measured, on its own draws

    @property
    def rows_per_pass(self) -> int | None:
        """Rows that go through the network at once, at most; None is as many as memory is for."""
        return self.budget.most

    @rows_per_pass.setter
    def rows_per_pass(self, rows: int) -> None:
        self.budget.most = rows

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
        ids: Ids | None = None,
        check: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Measure each image: per bin, the projected gradient of the mean measurement over the draws.

        ``features[i, b] = projector(grad of mean_d measurement(images[i], timesteps[i, b, d], noise[i, b, d]))``

        Rows, the draws of all images, go through the denoiser in batches of ``rows_per_pass``. Should memory run out,
        this number is halved for good, with a warning. Of a model with several networks, each for its own part of the
        timesteps, they are measured one after the other, each on its own draws.

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
            check: Also compare the first batch with autograd's gradient of it, which costs two training steps.

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
        boundaries = self.denoiser.boundaries
        if not boundaries:
            return self._features(images, Share(None, timesteps, noise, condition, weights), mask, ids, check)
        shape, device = (*timesteps.shape[:2], self.features_dim), self.denoiser.device
        features = torch.zeros(shape, device=device, dtype=torch.float32)
        averages = torch.zeros(shape[:2], device=device, dtype=torch.float32)
        for own in shares(boundaries, timesteps, noise, condition, weights):
            part, mean = self._features(images, own, mask, ids, check)
            assert own.bins is not None
            features[:, own.bins.to(device)] += part
            averages[:, own.bins.to(device)] += mean
        return features, averages

    def _features(
        self, images: Tensor, share: Share, mask: Tensor | None, ids: Ids | None, check: bool
    ) -> tuple[Tensor, Tensor]:
        """Measure images at draws that one network answers, see ``features``."""
        _, timesteps, noise, condition, weights = share
        num_samples, bins, num_draws = timesteps.shape
        values = row_values(self.denoiser, self.measurement, images, timesteps, noise, condition, mask, weights)

        def project(rows: int) -> tuple[Tensor, Tensor]:
            return self._project(values, num_samples * bins, num_draws, rows, check)

        features, measured = self.budget.run(project, values, timesteps.numel(), tuple(images.shape[1:]))
        averages, features = measured.view(num_samples, bins, num_draws).mean(-1), features.view(num_samples, bins, -1)
        finite = torch.isfinite(features).all(-1) & torch.isfinite(averages)
        if not finite.all():
            where = (~finite.all(-1)).nonzero().flatten().tolist()
            names = list(dict.fromkeys(str(ids[i] if ids is not None else i) for i in where))
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
        values = row_values(self.denoiser, self.measurement, images, timesteps, noise, condition, None, weights)
        num_samples, bins, num_draws = timesteps.shape

        def gauge(rows: int) -> LayerSizes:
            # A bin's draws that do not go through at once are not added up: the first ones stand for all.
            parts = [p for p in split_rows(num_samples * bins, num_draws, rows) if p.start % num_draws == 0]
            sizes = [
                gauge_layers(
                    self.engine, shifted(values, p), num_rows=p.stop - p.start, num_groups=groups_of(p, num_draws)
                )
                for p in parts
            ]
            return LayerSizes(
                sizes[0].layers, torch.cat([s.norms for s in sizes]), torch.cat([s.largest for s in sizes])
            )

        return self.budget.run(gauge, values, timesteps.numel(), tuple(images.shape[1:]))

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
        values = row_values(self.denoiser, self.measurement, images, timesteps, noise, condition, mask, None)
        num_rows = timesteps.numel()
        columns = {name: i for i, name in enumerate(self.engine.slots)}

        def measure(rows: int) -> Tensor:
            norms = torch.zeros(num_rows, len(columns), device=self.denoiser.device, dtype=torch.float32)
            for part in split_rows(num_rows, 1, rows):
                found = norms[part]

                def receive(slot: ParameterSlot, contributions: list[Contribution], found: Tensor = found) -> None:
                    found[:, columns[slot.name]] = squared_norms(slot, contributions, len(found)).sqrt()

                here, count = shifted(values, part), len(found)
                self.engine.for_each_parameter(here, num_rows=count, num_groups=count, receive=receive)
            return norms

        norms = self.budget.run(measure, values, num_rows, tuple(images.shape[1:]))
        return norms.view(*timesteps.shape, -1)

    def sketch_rows(self, values: RowValues, num_rows: int, shape: tuple[int, ...]) -> Tensor:
        """Project the gradient of every row of a batch by itself.

        Args:
            values: Runs the model on some rows and returns what is differentiated.
            num_rows: How many there are.
            shape: That of an image.

        Returns:
            float32, on the model's device. [num_rows, proj_dim]
        """

        def project(most: int) -> Tensor:
            return self._project(values, num_rows, 1, most, False)[0]

        return self.budget.run(project, values, num_rows, shape)

    def _project(
        self, values: RowValues, num_groups: int, num_draws: int, rows: int, check: bool
    ) -> tuple[Tensor, Tensor]:
        """Projected gradients of groups of draws, [num_groups, features_dim], and values of all rows."""
        features = torch.zeros(num_groups, self.features_dim, device=self.denoiser.device, dtype=torch.float32)
        measured = []
        for part in split_rows(num_groups, num_draws, rows):
            here, count = shifted(values, part), part.stop - part.start
            groups = features[part.start // num_draws :][: groups_of(part, num_draws)]
            whole = count == len(groups) * num_draws
            added = groups if whole else torch.zeros_like(groups)
            measured.append(self.engine.add_gradients_(added, here, num_rows=count, projector=self.projector))
            if check and torch.isfinite(added).all():
                check_gradients(self.engine, added, here, num_rows=count, projector=self.projector)
            check = False
            if not whole:
                groups += added * (count / num_draws)
        return features, torch.cat(measured)
