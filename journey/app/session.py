"""What one visitor made: a generation or an image, its scores and those of its parts, and when they were decided."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from journey.app.resemblance import Resemblance
from journey.app.turn import turn
from journey.app.upload import read_mask, read_upload
from journey.app.workbench import Unseen, Workbench
from journey.data.picture import Form
from journey.generation.noised import noised_trajectory
from journey.generation.record import decode_pixels, record
from journey.generation.sampler import Sampler
from journey.generation.trajectory import Trajectory
from journey.generation.transitions import Transition, transitions
from journey.models.encoding import encode_all
from journey.report.run import Run
from journey.scores.score import score
from journey.scores.scores import Scores

WHOLE = "the whole image"
RESEMBLANCE = "looks as it does in the end"
_TOP = 12
_CAPTION_LIMIT = 2000  # characters


class Session:
    """What one visitor made. Visitors share the workbench and nothing else.

    A method that fails or is cancelled leaves everything as it was. One thread at a time may call the methods, but
    ``cancel`` from any.

    Args:
        workbench: What all share.
    """

    def __init__(self, workbench: Workbench) -> None:
        self.workbench = workbench
        self.trajectory: Trajectory | None = None
        self.scores: Scores | None = None
        self.regions: dict[str, Scores] = {}
        self.transitions: dict[tuple[int, str], Transition] = {}
        self._stop = threading.Event()  # of the work that goes on; what was cancelled before keeps its own
        self._folder = tempfile.TemporaryDirectory(prefix="journey-app-")  # goes with the session

    def cancel(self) -> None:
        """Give up the work that goes on, if any does, before the network's next pass."""
        self._stop.set()

    def generate(
        self, told: str = "", *, seed: int = 0, num_inference_steps: int = 50, guidance: float | None = None
    ) -> None:
        """Generate an image and score its steps.

        Args:
            told: The prompt, or the number of a class; nothing for an unconditional model.
            seed: Names the image.
            num_inference_steps: Steps of the sampler.
            guidance: Strength of guidance; that of the pipeline by default.

        Raises:
            ValueError: If the model cannot be told that, or a number is out of range.
            CancelledError: If ``cancel`` was called meanwhile.
        """
        given = self._told(told)
        with self._working():
            made = record(
                self.workbench.denoiser,
                seed=seed,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance,
                progress=False,
                **given,
            )
            self._begin(made)

    def open(self, path: Path, told: str = "", *, seed: int = 0, num_inference_steps: int = 50) -> None:
        """Take an image that no model made: noised to each step, in place of a recorded generation.

        Args:
            path: The image file.
            told: Its caption, or the number of its class; nothing for an unconditional model.
            seed: Names the noise.
            num_inference_steps: Steps, as the sampler would take them.

        Raises:
            ValueError: If the file is no image, or one of more than 50 million pixels, or as ``generate``.
            CancelledError: If ``cancel`` was called meanwhile.
        """
        denoiser = self.workbench.denoiser
        given = self._told(told)
        item: dict[str, Any] = {"image": read_upload(path, Form(denoiser.sample_size, denoiser.in_channels or 3))}
        item |= {"text": given["prompt"]} if "prompt" in given else {}
        item |= {"label": given["class_labels"]} if "class_labels" in given else {}
        with self._working():
            encoded = encode_all(denoiser, [item], name="image")
            shape, told_to = tuple(encoded.x0.shape[1:]), encoded.condition
            steps = Sampler(denoiser, num_inference_steps, condition=told_to, shape=shape).timesteps
            made = noised_trajectory(denoiser, encoded.x0, list(dict.fromkeys(steps)), condition=told_to, seed=seed)
            pixels = None
            if denoiser.is_latent:
                pixels = decode_pixels(denoiser, torch.cat([made.x0_hat, made.images.unsqueeze(1)], 1))
            prompts = (told.strip(),) if told.strip() else ()
            self._begin(replace(made, num_inference_steps=num_inference_steps, prompts=prompts, pixels=pixels))

    def attribute(self, painted: str) -> str:
        """Score a painted part of the image at the same steps.

        Args:
            painted: What the brush made, see ``journey.app.upload.read_mask``.

        Returns:
            What the part is called from now on.

        Raises:
            ValueError: If there is no image yet, or nothing was painted.
            TypeError: If the features' measurement cannot be restricted to a part.
            CancelledError: If ``cancel`` was called meanwhile.
        """
        trajectory, whole = self._made()
        height, width = trajectory.image_pixels.shape[-2:]
        mask = read_mask(painted, (height, width))
        name = f"part {len(self.regions) + 1}"
        with self._working():
            self.regions[name] = self._score(trajectory, whole.timesteps.tolist(), mask)
        return name

    def decide(self, part: str = WHOLE, feature: str = RESEMBLANCE, *, completions: int = 16) -> str:
        """Find the steps in which a feature is decided.

        Args:
            part: ``WHOLE`` or the name of a part, of which it is asked when it looks as it does in the end.
            feature: ``RESEMBLANCE``, or the name of one of the workbench's classifiers.
            completions: Images completed from each step.

        Returns:
            What the feature is called on the page.

        Raises:
            ValueError: If there is no image yet, or no such part or feature.
            CancelledError: If ``cancel`` was called meanwhile.
        """
        trajectory, _ = self._made()
        name, classifier = self._classifier(trajectory, part, feature)
        with self._working():
            self.transitions[0, name] = transitions(
                self.workbench.denoiser,
                trajectory,
                classifier,
                completions=completions,
                seed=self.workbench.seed,
                progress=False,
            )
        return name

    def run(self) -> Run:
        """Return everything as ``journey.report`` takes it.

        Raises:
            ValueError: If there is no image yet.
        """
        trajectory, scores = self._made()
        return Run(
            trajectory,
            scores,
            self.workbench.dataset,
            labels=self.workbench.labels,
            regions=dict(self.regions),
            transitions=dict(self.transitions),
            groups=self.workbench.groups,
        )

    def page(self) -> str:
        """Return the page of ``run``."""
        return self.run().write_report(Path(self._folder.name) / "page.html", top=_TOP).read_text(encoding="utf-8")

    def write(self) -> list[Path]:
        """Write the page, the table of the strongest, and all scores as Parquet; return the paths of the files."""
        run, folder = self.run(), Path(self._folder.name)
        written = [run.write_report(folder / "report.html", top=_TOP), run.write_csv(folder / "report.csv", top=_TOP)]
        for name, scores in {"scores": run.scores, **run.regions}.items():
            written.append(folder / f"{name.replace(' ', '-')}.parquet")
            scores.to_parquet(written[-1])
        return written

    @contextmanager
    def _working(self) -> Iterator[None]:
        self._stop = stop = threading.Event()
        with turn(self.workbench.denoiser.network, stop):
            yield

    def _begin(self, trajectory: Trajectory) -> None:
        """Score the steps of another image, and only then forget the one before."""
        scores = self._score(trajectory, trajectory.spread(self.workbench.num_scored), None)
        self.trajectory, self.scores = trajectory, scores
        self.regions, self.transitions = {}, {}

    def _score(self, trajectory: Trajectory, steps: list[int], mask: Tensor | None) -> Scores:
        features, seed = self.workbench.features, self.workbench.seed
        return score(features, trajectory, steps=steps, region=mask, seed=seed, progress=False)

    def _made(self) -> tuple[Trajectory, Scores]:
        if self.trajectory is None or self.scores is None:
            raise ValueError("generate an image first, or give one")
        return self.trajectory, self.scores

    def _told(self, told: str) -> Mapping[str, Any]:
        """What ``record`` is told."""
        told, form = told.strip(), self.workbench.told
        if len(told) > _CAPTION_LIMIT:
            raise ValueError(f"the prompt must have at most {_CAPTION_LIMIT:,} characters, got {len(told):,}")
        if form == "prompt":
            return {"prompt": told}
        if form == "label":
            if not told.isdecimal():
                raise ValueError(f"the class must be a number from 0, got {told!r}")
            return {"class_labels": int(told)}
        if told:
            raise ValueError("this model is told nothing: leave the prompt empty")
        return {}

    def _classifier(self, trajectory: Trajectory, part: str, feature: str) -> tuple[str, Any]:
        """A feature's name on the page, and what tells it."""
        if feature in self.workbench.classifiers:
            return feature, self.workbench.classifiers[feature]
        if feature != RESEMBLANCE:
            raise ValueError(f"feature must be one of {[RESEMBLANCE, *self.workbench.classifiers]}, got {feature!r}")
        if isinstance(self.workbench.dataset, Unseen):
            raise ValueError(f'"{RESEMBLANCE}" is told by comparison with the training images: start the app with data')
        mask = None
        if part != WHOLE:
            if part not in self.regions:
                raise ValueError(f"part must be one of {[WHOLE, *self.regions]}, got {part!r}")
            found = self.regions[part].region
            mask = None if found is None else found[0]
        return f"{part} {RESEMBLANCE}", Resemblance(trajectory.image_pixels[0], self.workbench.dataset, mask)
