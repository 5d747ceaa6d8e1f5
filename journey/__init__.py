"""Find the training images that steered a diffusion model towards an image, at each step of its generation.

Three verbs: ``featurize`` measures a dataset once, ``record`` keeps the steps of a generation, ``score`` ranks the
training images for each step or for the whole image. Before them ``fit`` learns from some training images, once per
model; ``featurize`` calls it if nobody did.

The rest is imported from its package. In the order in which data flows these are ``data``, ``models``, ``generation``,
``projectors``, ``gradients``, ``measure``, ``curvature``, ``features``, ``scores``, ``report`` and ``audit``; beside
the road stand ``methods``, ``evaluate``, ``health``, ``integrations``, ``demo`` and ``cli``; below it ``ops``,
``files``, ``store``, ``locks`` and ``errors``.
"""

from journey import errors, evaluate, methods, ops
from journey.audit.check import check
from journey.audit.copies import copies
from journey.data.folder import ImageFolder
from journey.features.features import Features
from journey.features.featurize import featurize
from journey.features.fit import fit
from journey.features.fitted import Fit
from journey.features.open import open_features
from journey.generation.record import record
from journey.generation.trajectory import Trajectory
from journey.generation.transitions import Transition, transitions
from journey.health.inspect import Health, inspect
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.importance_draws import ImportanceDraws
from journey.measure.left_out import LeftOutLoss
from journey.measure.measurements import TrainingLoss
from journey.models.condition import Condition
from journey.models.load import as_denoiser
from journey.ops import reference
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch
from journey.report.page import write_report
from journey.report.run import Run
from journey.scores.influence import influence_matrix
from journey.scores.score import score
from journey.scores.scores import Scores

__version__: str = ops.build_info()["version"]

__all__ = [
    "Condition",
    "CountSketch",
    "Features",
    "Featurizer",
    "Fit",
    "Health",
    "Identity",
    "ImageFolder",
    "ImportanceDraws",
    "LeftOutLoss",
    "Run",
    "Scores",
    "StratifiedDraws",
    "TrainingLoss",
    "Trajectory",
    "Transition",
    "as_denoiser",
    "check",
    "copies",
    "errors",
    "evaluate",
    "featurize",
    "fit",
    "influence_matrix",
    "inspect",
    "methods",
    "open_features",
    "ops",
    "record",
    "reference",
    "score",
    "transitions",
    "write_report",
]
