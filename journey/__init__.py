"""Which training images steered a diffusion model, at each step of the generation, towards this image.

Three verbs: ``featurize`` measures a dataset once, ``record`` keeps the steps of a generation, ``score`` ranks the
training images for each step.
"""

from journey import ops
from journey.curvature.ekfac import fit_ekfac
from journey.curvature.kfac import fit_kfac
from journey.curvature.whitened import Curvature, Whitened
from journey.data.folder import ImageFolder
from journey.features.features import Features
from journey.features.featurize import featurize
from journey.features.open import open_features
from journey.generation.record import record
from journey.generation.sampler import Sampler, Step
from journey.generation.trajectory import Trajectory
from journey.generation.transitions import Transition, transitions
from journey.gradients.engine import GradientEngine
from journey.health.inspect import BinHealth, CheckpointHealth, Health, inspect
from journey.health.score_noise import ScoreNoise
from journey.measure.draws import Draws, ExplicitDraws, GridDraws, StratifiedDraws, UniformDraws
from journey.measure.featurizer import Featurizer
from journey.measure.importance_draws import ImportanceDraws
from journey.measure.left_out import LeftOutLoss, Prior
from journey.measure.measurements import (
    MeanOutput,
    Measurement,
    PixelMeasurement,
    Prediction,
    SquaredNorm,
    TrainingLoss,
)
from journey.models.condition import Condition
from journey.models.denoiser import Denoiser
from journey.ops import reference
from journey.projectors.base import Projector
from journey.projectors.exact import ExplicitMatrix, Identity
from journey.projectors.random import CountSketch, Gaussian, Rademacher
from journey.report.csv import write_csv
from journey.report.gif import write_gif
from journey.report.page import write_report
from journey.report.png import write_png
from journey.report.run import Run
from journey.scores.influence import InfluenceMatrix, influence_matrix
from journey.scores.score import score
from journey.scores.scores import Ranked, Scores, Top
from journey.scores.spectrum import Spectrum, decompose
from journey.store.store import FeatureStore

__version__: str = ops.build_info()["version"]

__all__ = [
    "BinHealth",
    "CheckpointHealth",
    "Condition",
    "CountSketch",
    "Curvature",
    "Denoiser",
    "Draws",
    "ExplicitDraws",
    "ExplicitMatrix",
    "FeatureStore",
    "Features",
    "Featurizer",
    "Gaussian",
    "GradientEngine",
    "GridDraws",
    "Health",
    "Identity",
    "ImageFolder",
    "ImportanceDraws",
    "InfluenceMatrix",
    "LeftOutLoss",
    "MeanOutput",
    "Measurement",
    "PixelMeasurement",
    "Prediction",
    "Prior",
    "Projector",
    "Rademacher",
    "Ranked",
    "Run",
    "Sampler",
    "ScoreNoise",
    "Scores",
    "Spectrum",
    "SquaredNorm",
    "Step",
    "StratifiedDraws",
    "Top",
    "TrainingLoss",
    "Trajectory",
    "Transition",
    "UniformDraws",
    "Whitened",
    "decompose",
    "featurize",
    "fit_ekfac",
    "fit_kfac",
    "influence_matrix",
    "inspect",
    "open_features",
    "ops",
    "record",
    "reference",
    "score",
    "transitions",
    "write_csv",
    "write_gif",
    "write_png",
    "write_report",
]
