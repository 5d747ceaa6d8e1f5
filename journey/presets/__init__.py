"""Published attribution methods as configurations of one engine.

Each is a few lines over ``journey.method.Method``: what is differentiated, at which (t, noise), projected how, and
compared how. ``preset().run(model, dataset, queries)`` returns ``Scores``; ``preset().change(projector=...)`` replaces
a part. Damping is a fraction of the mean eigenvalue. Where a paper tuned it on the scores that it reports, the preset
takes a plain value or generalised cross-validation; tune it on held-out subsets (``docs/evaluation.md``).

All are read from the papers and, where there is any, the published code; what is known to differ is said at each.
"""

from __future__ import annotations

from collections.abc import Callable

from journey.method import Method
from journey.presets.compressed import factgrass, grass, logra
from journey.presets.influence import kfac_influence
from journey.presets.tracin_family import carv, diffusion_retrac, dmin, tracin
from journey.presets.trak_family import das, dtrak, journey_trak, trak

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
