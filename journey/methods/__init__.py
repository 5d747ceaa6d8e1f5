"""Published attribution methods as configurations of one engine.

Each is a few lines over ``journey.methods.method.Method``: what is differentiated, at which (t, noise), projected how,
and compared how. ``preset().run(model, dataset, queries)`` returns ``Scores``; ``preset().change(projector=...)``
replaces a part. Damping is a fraction of the mean eigenvalue. Where a paper tuned it on the scores that it reports, the
preset takes a plain value or generalised cross-validation; tune it on held-out subsets (``docs/guides/retraining.md``).

In reading order: ``method`` (the engine), ``in_memory`` (features of images that are held in memory),
``preconditioners`` (the kernels), ``spectrum`` (the decomposition of a Gram matrix, and the damped solve),
``trak_family``, ``tracin_family``, ``compressed``, ``influence`` (published methods), ``selective_mask`` (a mask that
is fitted), ``baselines`` (scores without gradients).

All follow the papers and, where available, the published code; each docstring states known differences.
"""

from __future__ import annotations

from collections.abc import Callable

from journey.methods.compressed import factgrass, grass, logra
from journey.methods.influence import kfac_influence
from journey.methods.method import Method
from journey.methods.tracin_family import carv, diffusion_retrac, dmin, tracin
from journey.methods.trak_family import das, dtrak, journey_trak, trak

__all__ = [
    "PRESETS",
    "carv",
    "das",
    "diffusion_retrac",
    "dmin",
    "dtrak",
    "factgrass",
    "grass",
    "journey_trak",
    "kfac_influence",
    "logra",
    "tracin",
    "trak",
]

PRESETS: dict[str, Callable[[], Method]] = {
    preset.__name__: preset
    for preset in (
        journey_trak,
        trak,
        dtrak,
        das,
        dmin,
        diffusion_retrac,
        carv,
        logra,
        grass,
        factgrass,
        kfac_influence,
        tracin,
    )
}
