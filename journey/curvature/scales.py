"""One scale per parameter tensor: what gradients are multiplied by before they are sketched."""

from __future__ import annotations

import torch
from tqdm.auto import tqdm

from journey.curvature.moments import check_finite
from journey.curvature.pseudo_gradients import PseudoGradients
from journey.gradients.engine import GradientEngine
from journey.gradients.passes import RowBudget
from journey.gradients.rows import squared_norms
from journey.gradients.rules import Contribution
from journey.projectors.base import ParameterSlot

# Added to every mean square, as a fraction of that over all parameters. The gradient of some is rounding alone, such as
# that of the key biases of attention, whose mean square is 1e-16 of the mean in float32 and 1e-7 in bfloat16; divided
# by its own root it would look like any other. Of parameters that matter it was 1e-3 and more.
FLOOR = 1e-4


def fit_scales(
    gradients: PseudoGradients, engine: GradientEngine, passes: RowBudget, rows_per_batch: int, *, progress: bool
) -> dict[str, float]:
    """Measure ``s_P = (E |d psi / d P|^2 / |P| + floor)^(-1/2)`` for every parameter P, psi a pseudo-gradient.

    Args:
        gradients: The pseudo-gradients.
        engine: Captures the gradients of the parameters that are measured.
        passes: Bounds how many draws go through the network at once.
        rows_per_batch: Another bound, and what is taken where the other is wider.
        progress: Show a progress bar.

    Returns:
        The scales by name, in the order of the parameters; all zero where the output depends on none.

    Raises:
        NonFiniteGradientError: If a pseudo-gradient is NaN or infinite; names the parameter.
    """
    device = gradients.denoiser.device

    def measure(rows: int) -> dict[str, float]:
        sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in engine.slots}

        def add(slot: ParameterSlot, contributions: list[Contribution], num_rows: int) -> None:
            sums[slot.name] += squared_norms(slot, contributions, num_rows).sum(dtype=torch.float64)

        total = gradients.num_gradients
        with tqdm(total=total, unit="draw", desc="scales", disable=not progress, dynamic_ncols=True) as bar:
            gradients.for_each_parameter(engine, rows, add, bar)
        for name, found in sums.items():
            check_finite(name, found)
        return {name: found.item() for name, found in sums.items()}

    squares = passes.run(measure, gradients.first_row(), min(rows_per_batch, gradients.num_rows), gradients.shape)
    sizes = {name: slot.rows * slot.cols for name, slot in engine.slots.items()}
    floor = FLOOR * sum(squares.values()) / sum(sizes.values()) / gradients.num_rows
    means = {name: squares[name] / gradients.num_rows / sizes[name] + floor for name in sizes}
    # Rounded to float32, as which they are kept.
    exact = torch.tensor(
        [mean**-0.5 if mean > 0 else 0.0 for mean in means.values()], dtype=torch.float32, device="cpu"
    )
    return dict(zip(means, exact.tolist(), strict=True))
