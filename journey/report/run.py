"""A run folder: what was attributed, with everything that is needed to show it again without model and data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from journey.data.items import Dataset
from journey.files.publish import publish
from journey.files.tensors import Fields, check_fields, read_json
from journey.generation.trajectory import Trajectory
from journey.generation.transitions import Transition
from journey.report.csv import write_csv
from journey.report.gif import write_gif
from journey.report.page import write_report
from journey.report.png import write_png
from journey.report.shown import Shown, load_images, save_images
from journey.report.story import Transitions
from journey.report.view import TITLE, Captions, caption, dataset_ids, make_view, places_of
from journey.scores.scores import Scores

_NONE = type(None)
# What run.json holds, and what stands there about each region and each transition.
_FIELDS: Fields = {
    "top": int,
    "num_samples": int,
    "labels": (dict, _NONE),
    "query_captions": (list, _NONE),
    "regions": list,
    "transitions": list,
    "groups": dict,
    "notes": list,
    "title": str,
    "credit": str,
}
_REGION_FIELDS = {"name": str, "file": str}
_TRANSITION_FIELDS = {"query": int, **_REGION_FIELDS}


@dataclass(frozen=True)
class Run:
    """An attribution with what belongs to it, as the writers of ``journey.report`` take it.

    Attributes:
        trajectory: The recorded steps.
        scores: Scores of the same queries. [num_queries, num_steps, num_train]
        dataset: The training images, whose ids are ``scores.train_ids``.
        labels: Captions of the training images, looked up by dataset index.
        query_captions: One caption per generated image.
        regions: Scores of parts of the images by name.
        transitions: By (query, name of the feature).
        groups: Ids of training images by the name of a group.
        notes: Short remarks.
        title: Heading of the page and the picture.
        credit: Written below the picture and the animation.
        top: Ranks whose training images are there; None is all.
    """

    trajectory: Trajectory
    scores: Scores
    dataset: Dataset
    labels: Captions | None = None
    query_captions: Sequence[object] | None = None
    regions: Mapping[str, Scores] = field(default_factory=dict)
    transitions: Transitions = field(default_factory=dict)
    groups: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    title: str = TITLE
    credit: str = ""
    top: int | None = None

    def write_report(self, path: str | Path, *, top: int = 12) -> Path:
        """Write the page, see ``journey.report.page.write_report``."""
        return write_report(
            path,
            self.trajectory,
            self.scores,
            self.dataset,
            top=self._check(top),
            title=self.title,
            notes=self.notes,
            labels=self.labels,
            query_captions=self.query_captions,
            regions=self.regions,
            transitions=self.transitions,
            groups=self.groups,
        )

    def write_png(
        self, path: str | Path, *, query: int = 0, timesteps: Sequence[int] | None = None, top: int = 6
    ) -> Path:
        """Write the picture of one generated image, see ``journey.report.png.write_png``."""
        return write_png(
            path,
            self.trajectory,
            self.scores,
            self.dataset,
            query=query,
            timesteps=timesteps,
            top=self._check(top),
            title=self.title,
            labels=self.labels,
            query_captions=self.query_captions,
            credit=self.credit,
        )

    def write_gif(self, path: str | Path, *, query: int = 0, top: int = 5) -> Path:
        """Write the animation of one generated image, see ``journey.report.gif.write_gif``."""
        return write_gif(
            path,
            self.trajectory,
            self.scores,
            self.dataset,
            query=query,
            top=self._check(top),
            labels=self.labels,
            query_captions=self.query_captions,
            credit=self.credit,
        )

    def write_csv(self, path: str | Path, *, top: int = 8) -> Path:
        """Write the table, see ``journey.report.csv.write_csv``."""
        top = self._check(top)
        ids = dataset_ids(self.dataset, self.scores)
        return write_csv(path, self.trajectory, self.scores, top=top, labels=self.labels, ids=ids, regions=self.regions)

    def with_region(self, name: str, other: Run) -> Run:
        """Add another run of the same images as a region.

        Args:
            name: What the page calls it.
            other: A run whose scores are of a region, for the same steps.

        Returns:
            This run with the region, and the training images that either kept.

        Raises:
            ValueError: If the runs are of different images or data.
        """
        mine, theirs = self.trajectory.images, other.trajectory.images
        if mine.shape != theirs.shape or not torch.equal(mine, theirs) or len(self.dataset) != len(other.dataset):
            raise ValueError(f"region {name!r} must be a run of the same generated images and training images")
        dataset, labels = self.dataset, self.labels
        if isinstance(dataset, Shown) and isinstance(other.dataset, Shown):
            dataset = replace(dataset, images={**other.dataset.images, **dataset.images})
        if isinstance(labels, dict) and isinstance(other.labels, dict):
            labels = {**other.labels, **labels}
        tops = [top for top in (self.top, other.top) if top is not None]
        regions = {**self.regions, name: other.scores}
        return replace(self, dataset=dataset, labels=labels, regions=regions, top=min(tops, default=None))

    def _check(self, top: int) -> int:
        if self.top is not None and top > self.top:
            raise ValueError(f"top must be at most {self.top}, the ranks that were kept with the run, got {top}")
        return top

    def save(self, folder: str | Path, *, top: int = 16) -> None:
        """Write the run; of the training images only those that rank at some step.

        Args:
            folder: Where to; made if it is not there. It gets ``trajectory.safetensors``, ``scores.safetensors``,
                ``training.safetensors``, ``run.json``, and a file for each region and transition.
            top: Proponents and opponents of each step that are kept, at most.

        Raises:
            ValueError: As ``journey.report.page.write_report`` does.
            OSError: If the folder cannot be written to; it holds no run then.
        """
        places = places_of(self.dataset, self.scores)
        view = make_view(self.trajectory, self.scores, places, top, self.regions)
        kept = {places[i] for q in range(view.num_queries) for ranking in view.rankings for i in view.shown(q, ranking)}
        for (query, _), found in self.transitions.items():
            if found.found:
                first, end = found.interval
                ranges = ((first, end), (end, view.timesteps[0] + 1))
                kept |= {entry.position for around in ranges for entry in view.average(query, *around)}
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        (root / "run.json").unlink(missing_ok=True)  # written last: files of two runs are none
        self.trajectory.save(root / "trajectory.safetensors")
        self.scores.save(root / "scores.safetensors")
        save_images(root / "training.safetensors", self.dataset, sorted(kept), dataset_ids(self.dataset, self.scores))
        regions, transitions = [], []
        for i, (name, part) in enumerate(self.regions.items()):
            regions.append({"name": name, "file": f"scores-region-{i}.safetensors"})
            part.save(root / regions[-1]["file"])
        for i, ((query, name), found) in enumerate(self.transitions.items()):
            transitions.append({"query": query, "name": name, "file": f"transition-{i}.safetensors"})
            found.save(root / f"transition-{i}.safetensors")
        captions = self.query_captions
        queries = range(view.num_queries)
        described = {
            "top": top,
            "num_samples": len(self.dataset),
            "labels": None if self.labels is None else {i: caption(self.labels, i, "labels") for i in sorted(kept)},
            "query_captions": None if captions is None else [caption(captions, q, "query_captions") for q in queries],
            "regions": regions,
            "transitions": transitions,
            "groups": {name: list(ids) for name, ids in self.groups.items()},
            "notes": list(self.notes),
            "title": self.title,
            "credit": self.credit,
        }
        publish(root / "run.json", [json.dumps(described, indent=1).encode() + b"\n"])

    @staticmethod
    def load(folder: str | Path) -> Run:
        """Read what ``save`` wrote.

        Args:
            folder: The run.

        Returns:
            The run, with the training images that were kept.

        Raises:
            FileNotFoundError: If a file of the run is missing.
            ValueError: If the folder holds no run, or a file is damaged or holds something else.
        """
        root = Path(folder)
        path = root / "run.json"
        if not path.is_file():
            raise ValueError(f"{root} is no run: it has no run.json, which journey score and journey demo write")
        found = read_json(path)
        earlier = {"title": TITLE, "credit": "", "groups": {}}  # runs of earlier versions have none of these
        described = check_fields({**earlier, **found} if isinstance(found, dict) else found, _FIELDS, str(path))
        regions = [check_fields(part, _REGION_FIELDS, f"a region in {path}") for part in described["regions"]]
        changes = [
            check_fields(part, _TRANSITION_FIELDS, f"a transition in {path}") for part in described["transitions"]
        ]
        labels = described["labels"]
        return Run(
            Trajectory.load(root / "trajectory.safetensors"),
            Scores.load(root / "scores.safetensors"),
            load_images(root / "training.safetensors", described["num_samples"]),
            labels=None if labels is None else {int(i): words for i, words in labels.items()},
            query_captions=described["query_captions"],
            regions={part["name"]: Scores.load(_inside(root, part["file"])) for part in regions},
            transitions={
                (part["query"], part["name"]): Transition.load(_inside(root, part["file"])) for part in changes
            },
            groups=described["groups"],
            notes=described["notes"],
            title=described["title"],
            credit=described["credit"],
            top=described["top"],
        )


def _inside(root: Path, name: str) -> Path:
    """A file of the run: a name from its JSON must not lead elsewhere."""
    if Path(name).name != name:
        raise ValueError(f"run.json of {root} must name files of the same folder, got {name!r}")
    return root / name
