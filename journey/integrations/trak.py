"""The projectors and the gradient engine inside a ``TRAKer`` of the package traker, and reading what it stored.

Nothing here imports traker: the classes have the methods of its ``AbstractProjector`` and
``AbstractGradientComputer``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from journey.files.fingerprint import fingerprint_json
from journey.gradients.coverage import parameter_slots
from journey.gradients.engine import GradientEngine
from journey.integrations.trak_files import TRAKFeatures, read_features, read_scores, read_targets
from journey.ops.geometry import tap_major
from journey.projectors.base import Projector

__all__ = [
    "TRAKFeatures",
    "TRAKGradients",
    "TRAKProjector",
    "engine",
    "read_features",
    "read_scores",
    "read_targets",
]


class TRAKProjector:
    """One of this library's projectors, for ``TRAKer(projector=...)``.

    The same map for every model ID, batch and device, as in ``journey.featurize``.

    Args:
        model: The model whose gradients are projected; the map goes by its parameters' names.
        projector: The map.
        names: Parameters that are measured, as ``TRAKer(grad_wrt=...)``; all by default.

    Raises:
        ValueError: If a name is not a parameter's.
    """

    def __init__(self, model: nn.Module, projector: Projector, names: Iterable[str] | None = None) -> None:
        parameters = _chosen(model, names)
        self._slots = parameter_slots(parameters)
        self._projector = projector
        self.grad_dim = sum(p.numel() for p in parameters.values())
        self.proj_dim = projector.features_dim(self.grad_dim)
        # traker keeps it in its metadata and refuses to mix features whose types differ.
        self.proj_type = _describe(projector)

    def project(self, grads: Tensor | dict[str, Tensor], model_id: int) -> Tensor:
        """Project gradients of some samples.

        Args:
            grads: One row for each sample, parameters in the order of the model [num_samples, grad_dim]; or by name,
                each [num_samples, *parameter].
            model_id: Not used: there is one map.

        Returns:
            Features, float32. [num_samples, proj_dim]

        Raises:
            ValueError: If the gradients are not of these parameters.
        """
        if isinstance(grads, Tensor):
            if grads.dim() != 2 or grads.shape[1] != self.grad_dim:
                raise ValueError(f"grads must be [num_samples, {self.grad_dim}], got {list(grads.shape)}")
            sizes = [slot.rows * slot.cols for slot in self._slots.values()]
            grads = dict(zip(self._slots, grads.split(sizes, 1), strict=True))
        if set(grads) != set(self._slots):
            raise ValueError(f"grads must be of {sorted(self._slots)[:3]} ..., got {sorted(grads)[:3]} ...")
        first = next(iter(grads.values()))
        features = torch.zeros(len(first), self.proj_dim, device=first.device, dtype=torch.float32)
        for name, slot in self._slots.items():
            rows = grads[name].detach().float().reshape(len(first), slot.rows, slot.cols)
            self._projector.add_(features, slot, tap_major(rows, slot.taps).contiguous())
        return features

    def free_memory(self) -> None:
        """Do nothing: no matrix is stored."""


class TRAKGradients:
    """The gradient engine, for ``TRAKer(gradient_computer=...)``; made by ``engine``.

    Args:
        model: The model.
        task: A model output for whole batches, as traker's ``IterativeGradientComputer`` takes: ``get_output(model,
            None, None, *batch)`` returns one value per sample.
        grad_dim: Not used.
        dtype: Not used: features are float32.
        device: Where features are made.
        grad_wrt: None, or the same names.
        projector: Maps gradients to features.
        names: Parameters that are measured.
        uncovered: What to do about parameters without a gradient rule, see ``journey.gradients.engine.GradientEngine``.

    Raises:
        ValueError: If ``grad_wrt`` names other parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Any,
        grad_dim: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        grad_wrt: Iterable[str] | None = None,
        *,
        projector: Projector,
        names: frozenset[str],
        uncovered: Literal["error", "autograd"] = "error",
    ) -> None:
        if grad_wrt is not None and (chosen := frozenset(grad_wrt)) != names:
            raise ValueError(f"grad_wrt must be the names that engine was given, got {sorted(chosen)[:3]} ...")
        self.modelout_fn = task
        self._projector = projector
        self._device = device
        self._names = names
        self._uncovered: Literal["error", "autograd"] = uncovered
        self._engine: GradientEngine | None = None
        self.model = model

    def load_model_params(self, model: nn.Module) -> None:
        """Take the weights of a model from now on."""
        self.model, self._engine = model, None

    def compute_per_sample_grad(self, batch: Iterable[Tensor]) -> Tensor:
        """Return projected gradients of the samples of a batch.

        Args:
            batch: What the task takes, samples in the first dimension of each.

        Returns:
            Features, float32. [num_samples, proj_dim]

        Raises:
            ValueError: If the model is in train mode, or the task does not return one value per sample.
            CoverageError: If a parameter has no gradient rule; names it.
        """
        parts = list(batch)
        num_rows = len(parts[0])
        if self._engine is None:  # not before: a TRAKer puts the model into eval mode when it loads weights
            self._engine = GradientEngine(self.model, select=self._names.__contains__, uncovered=self._uncovered)

        def values(rows: slice) -> Tensor:
            output: Tensor = self.modelout_fn.get_output(self.model, None, None, *(part[rows] for part in parts))
            if output.shape != (len(parts[0][rows]),):
                raise ValueError(
                    "task must return one value per sample of a batch, as those for trak's IterativeGradientComputer "
                    f"do, got {list(output.shape)}"
                )
            return output

        proj_dim = self._projector.features_dim(self._engine.num_parameters)
        features = torch.zeros(num_rows, proj_dim, device=self._device, dtype=torch.float32)
        self._engine.add_gradients_(features, values, num_rows=num_rows, projector=self._projector)
        return features

    def compute_loss_grad(self, batch: Iterable[Tensor]) -> Tensor:
        """Return the derivative of each sample's loss by its model output, as the task has it. [num_samples, 1]"""
        found: Tensor = self.modelout_fn.get_out_to_loss_grad(self.model, None, None, batch)
        return found


def engine(
    model: nn.Module,
    projector: Projector,
    *,
    names: Iterable[str] | None = None,
    uncovered: Literal["error", "autograd"] = "error",
) -> dict[str, Any]:
    """Return the arguments with which a ``TRAKer`` measures by this library: gradients are projected as they are made.

    Args:
        model: The model.
        projector: Maps gradients to features.
        names: Parameters that are measured, all trainable ones by default. ``TRAKer(grad_wrt=...)`` may repeat them.
        uncovered: What to do about parameters without a gradient rule, see ``journey.gradients.engine.GradientEngine``.

    Returns:
        ``gradient_computer`` and ``projector``.

    Raises:
        ValueError: If a name is not a parameter's.

    Example:
        >>> traker = TRAKer(model=model, task=task, **engine(model, CountSketch(2048)), train_set_size=n)
    """
    parameters = {name: p for name, p in _chosen(model, names).items() if p.requires_grad}
    proj_dim = projector.features_dim(sum(p.numel() for p in parameters.values()))
    made = partial(TRAKGradients, projector=projector, names=frozenset(parameters), uncovered=uncovered)
    return {"gradient_computer": made, "projector": _Projected(proj_dim, _describe(projector))}


class _Projected:
    """A projector for what is projected already."""

    def __init__(self, proj_dim: int, proj_type: str) -> None:
        self.proj_dim = proj_dim
        self.proj_type = proj_type

    def project(self, grads: Tensor, model_id: int) -> Tensor:
        return grads

    def free_memory(self) -> None:
        pass


def _chosen(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    if names is None:
        return parameters
    chosen = set(names)
    if not chosen <= set(parameters):
        raise ValueError(f"names must be of the model's parameters, got {sorted(chosen - set(parameters))}")
    return {name: p for name, p in parameters.items() if name in chosen}


def _describe(projector: Projector) -> str:
    found = projector.fingerprint()
    return f"journey {found['class']} {fingerprint_json(found)[:12]}"
