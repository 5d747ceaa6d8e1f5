"""A pass asks the device for no value: on a GPU the host would wait for it, and the GPU then for the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import randn
from families import FAMILIES, Captioned, make_family
from models import make_scheduler, make_unet
from torch.utils._python_dispatch import TorchDispatchMode

from journey.gradients.engine import GradientEngine
from journey.measure.batch import draw_batch
from journey.measure.draws import StratifiedDraws
from journey.measure.measurements import TrainingLoss
from journey.measure.row_values import row_values
from journey.models.condition import Encoded
from journey.models.load import as_denoiser
from journey.projectors.random import CountSketch
from journey.projectors.scaled import Scaled

# What makes the host wait: a number for Python, and tensors whose size depends on values.
ASKS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique2", "_unique2"}


class Asked(TorchDispatchMode):
    """Remembers which operations asked the device for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in ASKS or (name == "index" and any(x.dtype == torch.bool for x in args[1] if x is not None)):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_what_asks_for_a_value_is_noticed() -> None:
    with Asked() as asked:
        x = torch.ones(2)
        float(x.sum())
        x[x > 0]
    assert asked.found == ["_local_scalar_dense", "index"]


@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_a_pass_asks_the_device_for_nothing(family: str | None) -> None:
    denoiser = as_denoiser((make_unet(), make_scheduler()) if family is None else make_family(family))
    if family is None:
        samples = Encoded.single(randn(2, 1, 8, 8))
    else:
        dataset = Captioned(2)
        samples = denoiser.encode([dataset[0], dataset[1]], [0, 1])
    drawn = draw_batch(denoiser, StratifiedDraws(2), samples, [0, 1])
    engine = GradientEngine(denoiser.network)
    projector = Scaled(CountSketch(64), dict.fromkeys(engine.slots, 1.5))
    features = torch.zeros(2, 64)
    values = row_values(
        denoiser, TrainingLoss(), samples.x0, drawn.timesteps, drawn.noise, drawn.condition, None, drawn.weights
    )
    engine.add_gradients_(features, values, num_rows=4, projector=projector)
    with Asked() as asked:
        engine.add_gradients_(features, values, num_rows=4, projector=projector)
    assert features.any()
    assert asked.found == []
