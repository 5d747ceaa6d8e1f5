"""Compares per-sample gradients with autograd's gradient of the batch, and names the parameters that differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from journey.errors import CoverageError, GradientCheckError
from journey.gradients.compare import ParameterSums, group_weights, row_tolerance, tolerance
from journey.gradients.engine import GradientEngine, RowValues
from journey.gradients.names import describe_unreached, name_some
from journey.projectors.base import Projector


def check_gradients(
    engine: GradientEngine, features: Tensor, values: RowValues, *, num_rows: int, projector: Projector
) -> None:
    """Compare freshly computed features of a batch with autograd's gradient of the whole batch.

    Every per-sample gradient enters a sum with a weight of its own, so a layer that is called in a way its rule
    does not know (through a functional, with rows in another dimension, sharing statistics between rows) is found.
    What remains are rows that influence each other, which the batch's gradient does too: so the last row's gradient
    is compared with the one that it has alone. Costs two training steps.

    Args:
        engine: What added them.
        features: What ``GradientEngine.add_gradients_`` added to zeros. [num_groups, proj_dim]
        values: As for ``GradientEngine.add_gradients_``.
        num_rows: Rows of the batch.
        projector: As for ``GradientEngine.add_gradients_``.

    Raises:
        CoverageError: If no parameter reaches the output.
        GradientCheckError: If they differ, naming the parameters, a row's gradient depends on the others, or a layer
            passes no gradient on.
    """
    num_groups = features.shape[0]
    expected = features.new_zeros(1, features.shape[1])
    weights = group_weights(num_groups, features.device)
    row_weights = weights.repeat_interleave(num_rows // num_groups)

    def weighted(rows: slice) -> Tensor:
        return values(rows) * row_weights[rows]

    with _uncut(engine.model):
        whole = engine.by_autograd(weighted, slice(0, num_rows), num_rows // num_groups, list(engine.parameters))
        grads = {slot.name: grad for slot, grad in whole}
    if not grads and not engine.may_miss:
        raise CoverageError(describe_unreached(list(engine.parameters)))
    for name, grad in grads.items():
        projector.add_(expected, engine.slots[name], grad)
    allowed = tolerance(engine.model)
    if (weights @ features - expected[0]).norm() <= allowed * expected.norm():
        _check_alone(engine, values, num_rows)
        return
    sums = ParameterSums()
    engine.add_gradients_(weights[:, None], values, num_rows=num_rows, projector=sums)
    wrong = sums.differ_from(grads, list(engine.slots), allowed)
    raise GradientCheckError(
        "per-sample gradients do not add up to autograd's gradient of the batch for "
        f"{name_some(wrong) or 'a sum of many small differences'}. Likely causes: the layer is used through a "
        "functional or with samples in another dimension than the first, or rows of a batch influence each other. "
        'Leave these parameters out with select=..., or measure them with uncovered="autograd"'
    )


@contextmanager
def _uncut(model: nn.Module) -> Iterator[None]:
    """Refuse layers that take what depends on measured parameters and give what does not, as autograd sees it.

    Layers that are quantised for inference alone do so; then the gradient of what lies before them is but a part.
    """
    names = {module: name for name, module in model.named_modules()}

    def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad]
        made = isinstance(output, Tensor) and output.is_floating_point() and not output.requires_grad
        if given and made and torch.is_grad_enabled():
            raise GradientCheckError(
                f"layer {names[layer]!r}, a {type(layer).__name__}, passes no gradient on to what lies before it, as "
                "layers do that are quantised for inference alone. Load the model with weights that are quantised and "
                "inputs that are not, such as nf4, or in 16 bits"
            )

    layers = [m for m in names if isinstance(getattr(m, "weight", None), Tensor) and not list(m.children())]
    handles = [layer.register_forward_hook(look, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_alone(engine: GradientEngine, values: RowValues, num_rows: int) -> None:
    """Refuse rows that influence each other: the last one, which may see all others, is run alone, too."""
    if num_rows == 1:
        return
    last = num_rows - 1

    def among(rows: slice) -> Tensor:
        return values(slice(0, num_rows))[rows]

    found, alone = (
        {slot.name: grad for slot, grad in engine.by_autograd(run, slice(last, num_rows), 1, list(engine.parameters))}
        for run in (among, values)
    )
    sums = ParameterSums()
    sums.of = {name: grad.float() for name, grad in found.items()}
    off, whole = sums.distance(alone), sums.distance({})
    if off > row_tolerance(engine.model) * whole:
        raise GradientCheckError(
            f"rows of a batch influence each other: the gradient of one of {num_rows} is off by {off / whole:.2g} of "
            "its size from the one that it has alone, so that features would depend on what else is in a batch. Likely "
            "causes: statistics of the batch, or attention between images. Load the model without them; "
            "batch_size=1 keeps images, though not the draws of each, apart"
        )
