"""What the report and the picture show: validated arrays, rankings by sign, and pixels ready to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from journey.data.ids import Ids, ids_of, positions_of
from journey.data.items import Dataset
from journey.report.media import as_image, as_images
from journey.scores.top import TopCollector, TopScores

if TYPE_CHECKING:
    from journey.generation.trajectory import Trajectory
    from journey.scores.ranked import Ranked
    from journey.scores.scores import Scores

Captions = Sequence[object] | Mapping[int, object]

TITLE = "Which training images steered the generation?"


@dataclass(frozen=True)
class Entry:
    """One ranked training image: its id, its score with the standard error, and its position in the dataset."""

    train_id: int | str
    value: float
    error: float  # NaN where it is not known
    position: int


@dataclass(frozen=True)
class Ranking:
    """Scores of the whole images or of one region, with the training images that stand out at each step."""

    name: str  # empty for the main scores
    values: Tensor  # [num_queries, num_steps, num_train]
    masks: Tensor | None  # weight of each pixel, [num_queries, H, W]; None is the whole image
    proponents: list[list[list[Entry]]]  # [num_queries][num_steps], positive scores, strongest first
    opponents: list[list[list[Entry]]]  # [num_queries][num_steps], negative scores, strongest first

    def strongest(self, query: int, step: int) -> float:
        """Largest magnitude among the ranked scores of one step, the full length of its bars; 0 if there is none."""
        entries = self.proponents[query][step][:1] + self.opponents[query][step][:1]
        return max((abs(entry.value) for entry in entries), default=0.0)

    def relative(self, query: int) -> Tensor:
        """Scores of one query, each step divided by its largest magnitude. [num_steps, num_train]"""
        peaks = self.values[query].abs().amax(dim=1, keepdim=True)
        return self.values[query] / torch.where(peaks > 0, peaks, torch.ones_like(peaks))


@dataclass(frozen=True)
class View:
    """A trajectory and its scores, checked against each other and cut to the steps that have scores."""

    timesteps: list[int]
    noisy: Tensor  # [num_queries, num_steps, C, H, W]
    predicted: Tensor  # [num_queries, num_steps, C, H, W]
    images: Tensor  # [num_queries, C, H, W]
    train_ids: Ids
    places: dict[int | str, int]  # the position in the dataset of each id
    top: int
    rankings: list[Ranking]  # the main scores, then the regions

    @property
    def num_queries(self) -> int:
        """Number of generated images."""
        return len(self.images)

    @property
    def num_steps(self) -> int:
        """Number of scored steps."""
        return len(self.timesteps)

    def chosen(self, query: int | Sequence[int] | None) -> list[int]:
        """Return the positions of the generated images that are asked for; None is all of them.

        Raises:
            ValueError: If ``query`` names none, or one that is not there.
        """
        everything = range(self.num_queries)
        queries = list(everything) if query is None else [query] if isinstance(query, int) else list(query)
        if not queries or not set(queries) <= set(everything):
            raise ValueError(
                f"query must be among 0..{self.num_queries - 1}, the generated images of trajectory, got {query}"
            )
        return queries

    def shown(self, query: int, ranking: Ranking) -> list[int | str]:
        """Ids of the training images that stand out at any step, ascending."""
        sides = (ranking.proponents[query], ranking.opponents[query])
        return sorted({entry.train_id for side in sides for step in side for entry in step})

    def average(self, query: int, first: int, end: int) -> list[Entry]:
        """The strongest proponents over the scored steps in timesteps [first, end), by their mean score."""
        inside = [s for s, t in enumerate(self.timesteps) if first <= t < end]
        if not inside:
            return []
        mean = self.rankings[0].values[query, inside].mean(0)[None, None]
        ranked, _ = TopCollector(self.top).add(self.train_ids, mean).top()
        return _entries(ranked, self.places, sign=1)[0][0]


def dataset_ids(dataset: Dataset, scores: Scores) -> Ids:
    """Return the ids of a dataset's images, in their order, as scores name them.

    Args:
        dataset: The training images, whose ids ``journey.data.ids.ids_of`` tells.
        scores: Their ids are the dataset's; or, of a dataset whose ids are strings, positions.

    Returns:
        The ids.

    Raises:
        TypeError: If ``scores`` are the strongest alone.
    """
    check_all_scored(scores)
    ids = ids_of(dataset)
    counted = bool(ids) and isinstance(ids[0], str) and isinstance(scores.train_ids[0], int)
    return list(range(len(ids))) if counted else ids


def places_of(dataset: Dataset, scores: Scores) -> dict[int | str, int]:
    """Return the position in a dataset of each id; the arguments are those of ``dataset_ids``.

    Raises:
        ValueError: If the dataset lacks an image that was scored.
        TypeError: If ``scores`` are the strongest alone.
    """
    places = positions_of(dataset_ids(dataset, scores))
    outside = [i for i in scores.train_ids if i not in places]
    if outside:
        raise ValueError(
            f"scores.train_ids must be ids of dataset, which has {len(places)} images, got {outside[0]!r}: is it the "
            "dataset that was featurized? One with an attribute ids tells them itself"
        )
    return places


def check_all_scored(scores: Scores) -> None:
    """Refuse the strongest scores alone.

    Raises:
        TypeError: If they are.
    """
    if isinstance(scores, TopScores):
        raise TypeError("scores must be of all training images, whose curves are shown: score without top=")


def make_view(
    trajectory: Trajectory,
    scores: Scores,
    places: dict[int | str, int],
    top: int,
    regions: Mapping[str, Scores] | None = None,
) -> View:
    """Check a trajectory and its scores against each other and rank the training images.

    Args:
        trajectory: The recorded steps, with pictures where it is of latents.
        scores: Scores of the same queries, for all of the recorded steps or some. [num_queries, num_steps, num_train]
        places: The position in the dataset of each of ``scores.train_ids``, see ``places_of``.
        top: Training images per step and sign, at most.
        regions: Scores of parts of the images by name, for the same steps and training images.

    Returns:
        The steps that have scores. Rankings keep one sign each, so they can be shorter than ``top``.

    Raises:
        ValueError: If queries, steps or training images disagree, a region's scores have no region, a score is not
            finite, or ``top`` is not positive.
    """
    recorded = [int(t) for t in trajectory.timesteps]
    scored = [int(t) for t in scores.timesteps]
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    if not scored or not set(scored) <= set(recorded):
        raise ValueError(f"scores.timesteps must be among trajectory.timesteps {recorded}, got {scored}")
    rankings = [_rank("", scores, "scores", trajectory, top, places)]
    for name, part in (regions or {}).items():
        what = f"regions[{name!r}]"
        if not name or part.region is None:
            raise ValueError(f"{what} must have a name, and scores that were made with region=")
        if part.timesteps.tolist() != scored or part.train_ids != scores.train_ids:
            raise ValueError(
                f"{what} must have the steps {scored} and the {len(scores.train_ids)} training images of scores, got "
                f"the steps {part.timesteps.tolist()} and {len(part.train_ids)} training images"
            )
        rankings.append(_rank(name, part, what, trajectory, top, places))
    steps = [recorded.index(t) for t in scored]
    return View(
        scored,
        as_images(trajectory.x_t_pixels[:, steps], 2),
        # Step by step: decoded videos are large.
        torch.stack([as_images(trajectory.predicted(step), 1) for step in steps], 1),
        as_images(trajectory.image_pixels, 1),
        scores.train_ids,
        places,
        top,
        rankings,
    )


def _rank(
    name: str, scores: Scores, what: str, trajectory: Trajectory, top: int, places: dict[int | str, int]
) -> Ranking:
    if len(scores.values) != trajectory.num_queries:
        raise ValueError(
            f"{what}.values must be [num_queries, num_steps, num_train] for the {trajectory.num_queries} queries of "
            f"trajectory, got {list(scores.values.shape)}"
        )
    if not torch.isfinite(scores.values).all():
        raise ValueError(f"{what}.values must be finite, got NaN or infinity")
    size = trajectory.image_pixels.shape[-2:]
    if scores.region is not None and list(scores.region.shape) != [trajectory.num_queries, *size]:
        raise ValueError(
            f"{what}.region must have the queries and the size of the images, {[trajectory.num_queries, *size]}, "
            f"got {list(scores.region.shape)}"
        )
    ranked = scores.top(min(top, len(scores.train_ids)))
    sides = (_entries(ranked.proponents, places, sign=1), _entries(ranked.opponents, places, sign=-1))
    return Ranking(name, scores.values, scores.region, *sides)


def _entries(ranked: Ranked, places: dict[int | str, int], sign: int) -> list[list[list[Entry]]]:
    """Turn one side of ``Scores.top`` into lists, without the scores that have the other sign or none."""
    return [
        [
            [Entry(i, v, e, places[i]) for i, v, e in zip(*step, strict=True) if v * sign > 0]
            for step in zip(*query, strict=True)
        ]
        for query in zip(ranked.ids.tolist(), ranked.values.tolist(), ranked.errors.tolist(), strict=True)
    ]


def to_picture(image: Tensor, *, max_side: int | None = None) -> Image.Image:
    """Turn an image in [-1, 1] into an 8-bit picture; values outside are clipped.

    Args:
        image: Grey or RGB [C, H, W], or what ``journey.report.media.as_image`` makes one of.
        max_side: Larger pictures are reduced to this side, by area averaging.

    Returns:
        Mode "L" for one channel, "RGB" for three.

    Raises:
        ValueError: If the image is not [1, H, W] or [3, H, W].
    """
    image = as_image(image)
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"images must be [1, H, W] or [3, H, W] to be shown, got {list(image.shape)}: "
            "latents need trajectory.pixels, which record keeps for a pipeline with its autoencoder"
        )
    pixels = ((image.detach().float().cpu().nan_to_num() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    array: np.ndarray[Any, np.dtype[np.uint8]] = pixels.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    if max_side is not None and max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.BOX)
    return picture


def caption(captions: Captions | None, index: int, argument: str) -> str:
    """Caption number ``index`` as text, empty without captions; a missing one is an error that names ``argument``."""
    if captions is None:
        return ""
    try:
        return str(captions[index])
    except (IndexError, KeyError):
        raise ValueError(f"{argument} has no caption for {index}: one is needed for every image shown") from None


def format_number(value: float) -> str:
    """Three digits with a sign; an exponent for sizes that would need leading or trailing zeros."""
    text = f"{value:+#.3g}".rstrip(".") if 1e-3 <= abs(value) < 999.5 else f"{value:+.1e}"
    return text.replace("e-0", "e-").replace("e+0", "e")
