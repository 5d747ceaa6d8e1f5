"""What really happens: models retrained on random halves, and the losses of every query under each of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm.auto import tqdm

from bench.retraining.tiers import Tier
from journey.data.items import Dataset
from journey.evaluate.responses import measure_responses
from journey.evaluate.retrain import Run, retrain
from journey.evaluate.subsets import Subsets, random_subsets
from journey.evaluate.training import UNetTraining
from journey.files.fingerprint import JSONValue, fingerprint_json, fingerprint_tensors
from journey.files.publish import publish
from journey.generation.record import record
from journey.generation.trajectory import Trajectory
from journey.measure.draws import StratifiedDraws
from journey.models.condition import Condition, Encoded
from journey.models.denoiser import Denoiser

BINS = 4  # quarters of the range of timesteps, of which a response is the mean
_DRAWS = StratifiedDraws(num_draws=10, bins=BINS, seed=1)
SAMPLER_STEPS = 20
QUERY_KINDS = ("training", "held-out", "generated")
# Models of the whole training set: the first is the one that is attributed, the other is for an ensemble.
NUM_MODELS = 2


@dataclass(frozen=True, eq=False)
class Truth:
    """The table of losses, and what it belongs to.

    Attributes:
        subsets: The reported halves, then those for tuning.
        num_reported: How many are reported.
        responses: Losses; NaN where a half was not trained with that seed. [num_subsets, num_seeds, num_queries, BINS]
    """

    subsets: Subsets
    num_reported: int
    responses: Tensor

    def reported(self) -> tuple[Subsets, Tensor]:
        """Return halves that are reported. [num_reported, num_seeds, num_queries, BINS]"""
        return self.subsets.select(slice(0, self.num_reported)), self.responses[: self.num_reported]

    def tuning(self) -> tuple[Subsets, Tensor]:
        """Return halves that choices are made on, one seed each. [num_tuning, 1, num_queries, BINS]"""
        return self.subsets.select(slice(self.num_reported, None)), self.responses[self.num_reported :, :1]


@dataclass(frozen=True, eq=False)
class Setting:
    """A tier with its images and where its models are kept."""

    tier: Tier
    train: Tensor
    held_out: Tensor
    work: Path

    @cached_property
    def training(self) -> UNetTraining:
        """Return how models are trained."""
        return self.tier.training(self.train)

    @cached_property
    def model(self) -> Denoiser:
        """Return the model that is attributed, trained or from the folder."""
        return self._of_all(0)

    @cached_property
    def models(self) -> list[Denoiser]:
        """Return models of the whole training set, the attributed one first."""
        return [self.model, *map(self._of_all, range(1, NUM_MODELS))]

    def _of_all(self, seed: int) -> Denoiser:
        run = Run(tuple(range(self.tier.num_train)), seed)
        return self.load(retrain(self.training, [run], self.work / "models", progress=False)[0])

    def load(self, path: Path) -> Denoiser:
        """Return the model of a file of weights."""
        network = self.training.build(0)
        network.load_state_dict(load_file(path))
        return Denoiser(network, DDIMScheduler.from_config(self.training.scheduler.config))

    @cached_property
    def dataset(self) -> Dataset:
        """Return the training images as ``journey.featurize`` takes them."""
        return list(self.train)

    @cached_property
    def trajectory(self) -> Trajectory:
        """Return generated queries with their recorded steps; the same in every run."""
        path = self.work / "trajectory.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.make_trajectory().save(path)
        return Trajectory.load(path)

    @property
    def about(self) -> dict[str, JSONValue]:
        """Return what the tables say of the images, beside their fingerprint."""
        return {}

    def make_trajectory(self) -> Trajectory:
        """Generate the queries."""
        count = self.tier.num_queries
        return record(self.model, num_images=count, num_inference_steps=SAMPLER_STEPS, progress=False)

    def images(self, kind: str) -> Tensor:
        """Return the queries of a kind. [num_queries, C, H, W]"""
        if kind == "generated":
            return self.trajectory.images
        return self.train[: self.tier.num_queries] if kind == "training" else self.held_out

    def words(self, kind: str) -> tuple[str, ...]:
        """Return the captions of the queries of a kind; none of an unconditional model."""
        return ()

    def told(self, kind: str) -> Condition | None:
        """Return what the network is told of the queries of a kind; None of an unconditional one."""
        words = self.words(kind)
        return self.model.encode_prompt(list(words)) if words else None

    def samples(self, kind: str) -> Encoded:
        """Return the queries of a kind with what the network is told."""
        return Encoded.single(self.images(kind), self.told(kind))

    @cached_property
    def asked(self) -> Encoded:
        """Return all queries, kind after kind, with what the network is told. [3 * num_queries]"""
        return Encoded.cat([self.samples(kind) for kind in QUERY_KINDS])

    @property
    def pictures(self) -> Dataset:
        """Return all queries, kind after kind, as ``journey.score`` takes images: with their captions, if they have."""
        words = [text for kind in QUERY_KINDS for text in self.words(kind)]
        if not words:
            return list(self.queries)
        return [{"image": image, "text": text} for image, text in zip(self.queries, words, strict=True)]

    @cached_property
    def queries(self) -> Tensor:
        """Return the images of all queries, kind after kind. [3 * num_queries, C, H, W]"""
        return self.asked.x0


def open_setting(tier: Tier, data: Path | None, work: Path) -> Setting:
    """Load a tier's images."""
    train, held_out = tier.images(data)
    return Setting(tier, train, held_out, work / tier.name)


def make_truth(setting: Setting, path: Path, processes: int) -> Truth:
    """Retrain what is not there yet, measure all queries, and write the table."""
    tier = setting.tier
    subsets, runs, paths = retrained(setting, processes)
    measured = measure_whole(setting, paths)
    responses = by_subset(subsets, runs, measured)
    write_table(
        path,
        {
            "what": "loss of every query under models retrained on random halves: [subset][seed][query][quarter of t]",
            "training": setting.training.fingerprint(),
            **setting.about,
            "draws": _DRAWS.fingerprint(),
            "queries": {"kinds": QUERY_KINDS, "of_each": tier.num_queries},
            "subsets": subsets.to_json(),
            "num_reported": tier.num_subsets,
        },
        responses,
        digits=6,
    )
    return Truth(subsets, tier.num_subsets, responses)


def measure_whole(setting: Setting, paths: Sequence[Path]) -> Tensor:
    """Measure all queries under every model. [num_models, num_queries, BINS]"""
    queries = setting.asked
    told = {} if queries.condition is None else queries.condition.tensors
    of: list[JSONValue] = [_DRAWS.fingerprint(), fingerprint_tensors({**told, "x0": queries.x0})]
    model = setting.model
    return measure_models(
        setting, paths, of, lambda path: measure_responses(model, [path], queries, draws=_DRAWS, progress=False)[0]
    )


def retrained(setting: Setting, processes: int) -> tuple[Subsets, list[tuple[int, int]], list[Path]]:
    """Retrain what is not there yet.

    Returns:
        The halves, reported ones first; the half and the seed of every model; and the file of its weights.
    """
    tier = setting.tier
    subsets = random_subsets(tier.num_train, tier.num_subsets + tier.num_tuning)
    # The most useful first, should somebody stop it: one seed of everything, then the other seeds.
    runs = [(j, 0) for j in range(len(subsets))]
    runs += [(j, seed) for seed in range(1, tier.num_seeds) for j in range(tier.num_subsets)]
    wanted = [Run(subsets.indices(j), seed) for j, seed in runs]
    paths = retrain(setting.training, wanted, setting.work / "models", processes=processes)
    return subsets, runs, paths


def measure_models(
    setting: Setting, paths: Sequence[Path], of: list[JSONValue], measure: Callable[[Path], Tensor]
) -> Tensor:
    """Measure every model, or read what an earlier run measured.

    Args:
        setting: The tier.
        paths: The models' weights.
        of: What a measurement depends on besides them.
        measure: Measures one. Returns [...]

    Returns:
        float32. [num_models, ...]
    """
    folder = setting.work / "responses" / fingerprint_json([setting.training.fingerprint(), *of])[:16]
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for path in tqdm(paths, unit="model", desc="measure", dynamic_ncols=True):
        kept = folder / path.name
        if not kept.exists():
            publish(kept, [save({"responses": measure(path)})])
        found.append(load_file(kept)["responses"])
    return torch.stack(found)


def by_subset(subsets: Subsets, runs: Sequence[tuple[int, int]], measured: Tensor) -> Tensor:
    """Put what was measured of each model in the place of its half and seed, NaN where there is none.

    Args:
        subsets: The halves.
        runs: The half and the seed of every model.
        measured: [num_models, ...]

    Returns:
        float32. [num_subsets, num_seeds, ...]
    """
    num_seeds = 1 + max(seed for _, seed in runs)
    responses = torch.full((len(subsets), num_seeds, *measured.shape[1:]), float("nan"))
    for (j, seed), values in zip(runs, measured, strict=True):
        responses[j, seed] = values
    return responses


def write_table(path: Path, document: dict[str, Any], responses: Tensor, *, digits: int) -> None:
    """Write responses as nested lists, None for what was not trained, below what they belong to."""
    rounded = _rounded(responses.tolist(), digits)
    document = {**document, "responses": rounded, "checksum": fingerprint_json(rounded)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n")


def read_table(path: Path) -> tuple[dict[str, Any], Tensor]:
    """Read what ``write_table`` wrote: the document and the responses, NaN for what was not trained."""
    document = json.loads(path.read_text())
    return document, torch.tensor(_rounded(document["responses"], 17))


def read_truth(path: Path) -> Truth:
    """Read the table that ``make_truth`` wrote."""
    document, responses = read_table(path)
    return Truth(Subsets.from_json(document["subsets"]), document["num_reported"], responses)


def _rounded(values: Any, digits: int) -> Any:
    """Significant digits, far below the differences between models; NaN and None stand for each other."""
    if isinstance(values, list):
        return [_rounded(value, digits) for value in values]
    if values is None:
        return float("nan")
    return None if values != values else float(f"{values:.{digits}g}")
