"""What is wrong with a training set: all questions at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from journey.audit.captions import FEWEST_CAPTIONS, CaptionFits, misfit_captions, told_words
from journey.audit.finding import KINDS, Check, Finding
from journey.audit.kernel import Kernel, check_pictures
from journey.audit.near_duplicates import equal_pictures, near_duplicates, with_equal
from journey.audit.odd import odd_images
from journey.audit.opponents import opponents
from journey.audit.self_influence import self_influence
from journey.audit.tell import Teller
from journey.curvature.gram import DEFAULT_DAMPING
from journey.data.ids import Ids, ids_of, positions_of
from journey.data.items import Dataset
from journey.features.features import Features
from journey.generation.record import record
from journey.scores.score import score

_SAMPLER_STEPS = 30
_PROMPT_IMAGES = 2  # made of each prompt


def check(
    features: Features,
    dataset: Dataset,
    *,
    prompts: Sequence[str] | None = None,
    damping: float = DEFAULT_DAMPING,
    seed: int = 0,
    progress: bool = True,
) -> Check:
    """Look for what is wrong with a training set.

    Near-duplicates, captions that do not fit, images that do not belong, images that work against the others or against
    what the model makes of some prompts, images that are learned by heart, and images that do nothing. Each finding has
    a number with its noise, and what leaving its images out is predicted to change, to first order.

    Args:
        features: The training images, from ``journey.featurize``.
        dataset: The same images, with their captions.
        prompts: Also look for images that work against what the model makes of these; for models that read text.
        damping: As for ``journey.score``.
        seed: Names everything random.
        progress: Show progress bars.

    Returns:
        The findings. ``journey.audit.page.write_page`` shows them, ``Check.save`` writes tables.

    Raises:
        TypeError: If ``features`` is a path, or ``prompts`` is a string.
        ValueError: As ``journey.audit.self_influence.self_influence`` and ``misfit_captions``, or if ``prompts`` are
            given to a model that reads no text, or the model is one of videos or sounds.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list of prompts, got the string {prompts!r}; put it in a list")
    denoiser = features.featurizer.denoiser
    check_pictures(denoiser)
    kernel = Kernel.of(features, damping)
    told = denoiser.encode([dataset[0]], [0]).condition is not None
    fits, different = None, 0
    if told:
        places = positions_of(ids_of(dataset))
        different = len(set(told_words(denoiser, dataset, [places[i] for i in kernel.ids if i in places])))
    if different >= FEWEST_CAPTIONS:
        fits = misfit_captions(features, dataset, seed=seed, progress=progress)
    own, effects = self_influence(kernel), opponents(kernel)
    odd = odd_images(features, dataset, fits=fits, seed=seed, progress=progress)
    copies = near_duplicates(kernel)
    teller = Teller(kernel, dataset, effects, captioned=told)
    copies = with_equal(copies, equal_pictures(kernel.ids, dataset))
    found: list[Finding] = [*teller.duplicates(copies), *teller.odd(odd), *teller.opponents()]
    found += [] if fits is None else teller.captions(fits, odd.outliers)
    if prompts is not None:
        found += _against(features, prompts, damping, seed, progress)
    found += teller.memorised(own, seed=seed, progress=progress)
    found += [*teller.idle(own), *teller.undecided(own, copies.undecided, fits)]
    order = list(KINDS)
    found.sort(key=lambda finding: order.index(finding.kind))  # stable: within a kind the clearest stay first
    rankings = {
        "self_influence": (own.ids, own.values),
        "self_influence_error": (own.ids, own.errors),
        "influence_on_others": (effects.ids, effects.values),
        "influence_on_others_error": (effects.ids, effects.errors),
        "oddness": (odd.ids, odd.values),
        **(
            {}
            if fits is None
            else {"caption_misfit": (fits.ids, fits.lacks), "caption_misfit_error": (fits.ids, fits.errors)}
        ),
    }
    numbers = {name: _in_order(kernel.ids, *ranking) for name, ranking in rankings.items()}
    return Check(tuple(found), tuple(kernel.ids), numbers, _notes(kernel, fits, different))


def _against(features: Features, prompts: Sequence[str], damping: float, seed: int, progress: bool) -> list[Finding]:
    """The images that work against what the model makes of some prompts, beyond the noise."""
    made = record(
        features.featurizer.denoiser,
        prompt=list(prompts),
        num_images=_PROMPT_IMAGES,
        seed=seed,
        num_inference_steps=_SAMPLER_STEPS,
        progress=progress,
    )
    scores = score(features, images=made, damping=damping, seed=seed, progress=progress)
    values, errors = scores.values[:, 0].double(), scores.standard_errors()[:, 0].double()
    mean = values.mean(0)
    error = errors.mean(0)  # at most: as if the errors of all queries had one sign
    against = (values < 0).double().mean(0)
    found = []
    for column in torch.sort(mean).indices.tolist():
        if mean[column] + 2 * error[column] >= 0 or against[column] <= 0.5:
            continue
        i = scores.train_ids[column]
        sentence = (
            f"It works against {against[column]:.0%} of {len(values)} images that the model makes of the prompts."
        )
        told = "Leaving it out is predicted to make what the prompts ask for more likely."
        number = (mean[column].item(), error[column].item(), "mean influence on the prompts' images")
        found.append(Finding("opponent", (i,), sentence, *number, told))
    return found


def _in_order(ids: Ids, ranked: Ids, values: torch.Tensor) -> list[float]:
    """The values of a ranking in the order of rows."""
    places = positions_of(ranked)
    return [values[places[i]].item() for i in ids]


def _notes(kernel: Kernel, fits: CaptionFits | None, different: int) -> tuple[str, ...]:
    """How it was measured, in sentences."""
    draws = kernel.features.draws
    notes = [
        f"{len(kernel.ids):,} images, {draws.bins * draws.num_draws} draws of timestep and noise each, damping "
        f"{kernel.damping:g}. Numbers after ± are standard errors by the draws, at most.",
        "Predictions are to first order, for the training loss, and were checked by retraining small models only.",
        "Self-influence is without what the noise of the draws adds to it, by two disjoint halves of them.",
    ]
    if not different:
        notes.append("The model is told nothing about its images, so captions were not judged.")
    elif fits is None:
        notes.append(f"Captions were not judged: there are {different} different ones, too few to compare.")
    return tuple(notes)
