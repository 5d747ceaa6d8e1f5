"""Findings in words: what each question's answer says about single images, with what leaving them out would change."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from journey.audit.captions import CaptionFits, Exchange
from journey.audit.finding import Finding, Shown
from journey.audit.kernel import Kernel
from journey.audit.near_duplicates import SAME, Duplicates, Pair
from journey.audit.odd import Oddness
from journey.audit.opponents import Effects
from journey.audit.self_influence import SelfInfluence
from journey.audit.similarity import pixel_distance
from journey.data.ids import ids_of, positions_of
from journey.data.items import Dataset, captions_of, get_image
from journey.generation.record import record
from journey.report.view import format_number

_MEMORISED = 6  # shown, with what the model makes of their captions
_SAMPLER_STEPS = 30


@dataclass(frozen=True, eq=False)
class Teller:
    """Puts answers into words.

    Attributes:
        kernel: Of the training images.
        dataset: The same images.
        effects: What each does to the others.
        captioned: Whether the model reads captions.
    """

    kernel: Kernel
    dataset: Dataset
    effects: Effects
    captioned: bool

    def duplicates(self, found: Duplicates) -> list[Finding]:
        """One finding for each group."""
        return [self._group(group, pairs) for group, pairs in zip(found.groups, found.pairs, strict=True)]

    def _group(self, group: list[int | str], pairs: list[Pair]) -> Finding:
        first, second = (self._image(i) for i in pairs[0].ids)
        alike = ""
        if first.shape == second.shape:
            distance = pixel_distance(first[None], second[None]).item()
            alike = (
                " Their pixels are equal."
                if distance == 0
                else f" Their pixels differ by {distance / 2:.0%} of the range."
            )
        if len(group) > 2:
            sentence = f"These {len(group)} images do the same to the model.{alike}"
        elif pairs[0].cosine >= SAME:
            sentence = f"These two images do the same to the model.{alike}"
        else:
            sentence = (
                f"Each of these two images is by far the nearest to the other in what it does to the model.{alike}"
            )
        rest = group[1:]
        told = f"Leaving out all but the first ({_names(rest)}) is predicted to change {self._of_others(rest)}"
        closest = pairs[0]
        return Finding("duplicates", tuple(group), sentence, closest.cosine, closest.error, "cosine of rows", told)

    def captions(self, fits: CaptionFits, odd: Collection[int | str]) -> list[Finding]:
        """One finding for each exchanged pair, and for each other caption that does not fit an image that belongs."""
        found = [self._exchange(pair) for pair in fits.exchanged]
        told = {i for finding in found for i in finding.ids}.union(odd)
        misfits = set(fits.misfits) - told
        found += [self._misfit(fits, place) for place, i in enumerate(fits.ids) if i in misfits]
        return found

    def _exchange(self, pair: Exchange) -> Finding:
        return Finding(
            "caption",
            pair.ids,
            "The captions of these two images seem to have changed places: each image fits the other's better.",
            pair.gain,
            pair.error,
            "share of the usual fit that both gain on the mean by changing captions",
            f"Leaving both out is predicted to change {self._of_others(pair.ids)}",
            tuple(Shown(i, f"“{self.words(i)}”") for i in pair.ids),
        )

    def _misfit(self, fits: CaptionFits, place: int) -> Finding:
        i, other = fits.ids[place], fits.better[place]
        better = "" if other is None else f" That of {other} fits best: “{self.words(other)}”."
        shown = [Shown(i, f"“{self.words(i)}”")]
        shown += [] if other is None else [Shown(other, f"“{self.words(other)}”")]
        return Finding(
            "caption",
            (i,),
            f"The caption “{self.words(i)}” fits this image no better than captions of others.{better}",
            fits.lacks[place].item(),
            fits.errors[place].item(),
            "share of the usual fit of the caption that is lacking",
            f"Leaving the image out is predicted to change {self._of_others([i])}",
            tuple(shown),
        )

    def odd(self, odd: Oddness) -> list[Finding]:
        """One finding for each image that does not belong."""
        return [
            Finding(
                "odd",
                (i,),
                "The other images taught the model little that helps with this one.",
                odd.values[place].item(),
                None,
                odd.MEASURES,
                f"Leaving it out is predicted to change {self._of_others([i])}",
            )
            for place, i in enumerate(odd.ids)
            if i in odd.outliers
        ]

    def opponents(self) -> list[Finding]:
        """One finding for each image that works against most others."""
        effects, against = self.effects, set(self.effects.opponents)
        return [
            Finding(
                "opponent",
                (i,),
                f"This image works against {effects.against[place]:.0%} of the others.",
                effects.values[place].item(),
                effects.errors[place].item(),
                "mean influence on the others",
                f"Leaving it out is predicted to change {self._of_others([i])}",
            )
            for place, i in enumerate(effects.ids)
            if i in against
        ]

    def memorised(self, own: SelfInfluence, *, seed: int, progress: bool) -> list[Finding]:
        """The images that depend most on being trained on, with what the model makes of their captions."""
        first = [place for place in range(min(_MEMORISED, len(own.ids))) if own.values[place] > 2 * own.errors[place]]
        found = []
        for place in first:
            i, change = own.ids[place], own.loss_change[place].item()
            shown = [Shown(i), *self._regenerated(i, seed, progress)]
            found.append(
                Finding(
                    "memorised",
                    (i,),
                    f"Place {place + 1} of {len(own.ids)}: how much the model's error on the image hangs on it.",
                    own.values[place].item(),
                    own.errors[place].item(),
                    "self-influence",
                    f"Without it the model's loss on it is predicted to rise by {format_number(change).lstrip('+')}.",
                    tuple(shown),
                )
            )
        return found

    def _regenerated(self, i: int | str, seed: int, progress: bool) -> list[Shown]:
        """What the model makes of an image's caption."""
        if not self.captioned:
            return []
        denoiser = self.kernel.features.featurizer.denoiser
        told = denoiser.encode_conditions([self._item(i)], [str(i)])[0]
        if told is None:
            return []
        made = record(
            denoiser,
            condition=told.select(slice(0, 1)),
            seed=seed,
            num_inference_steps=_SAMPLER_STEPS,
            progress=progress,
        )
        return [Shown(i, "made by the model from its caption", made.image_pixels[0])]

    def idle(self, own: SelfInfluence) -> list[Finding]:
        """The images that make no difference, beyond the noise."""
        usual = own.values.median()
        places = {i: place for place, i in enumerate(self.effects.ids)}
        found = []
        for place, i in enumerate(own.ids):
            value, error = own.values[place], own.errors[place]
            there = places[i]
            other = self.effects.values[there].abs() <= 2 * self.effects.errors[there]
            # A tenth of the usual, and known to be.
            if value + 2 * error < usual / 10 and other:
                told = f"Leaving it out is predicted to change nothing: {self._of_others([i])}"
                sentence = "The model would know this image without having seen it."
                found.append(Finding("idle", (i,), sentence, value.item(), error.item(), "self-influence", told))
        return found

    def undecided(self, own: SelfInfluence, pairs: Sequence[Pair], fits: CaptionFits | None) -> list[Finding]:
        """What the noise of the draws, or the model itself, leaves open."""
        unsure = [i for i, v, e in zip(own.ids, own.values.tolist(), own.errors.tolist(), strict=True) if v <= 2 * e]
        found = []
        if unsure:
            place = own.ids.index(unsure[0])
            sentence = (
                f"The self-influence of {len(unsure)} of {len(own.ids)} images is within two standard errors of zero: "
                "whether they are learned by heart, copies or idle is open."
            )
            number = (own.values[place].item(), own.errors[place].item(), "self-influence of the first")
            found.append(Finding("undecided", tuple(unsure), sentence, *number))
        for pair in pairs:
            sentence = "These two may be near-duplicates: the noise of their draws is too large to tell."
            found.append(Finding("undecided", pair.ids, sentence, pair.cosine, pair.error, "cosine of rows"))
        if fits is not None and not fits.reads:
            sentence = (
                "Captions cannot be judged: the model expects from most of them nothing that their images show. The "
                "number is the median over images."
            )
            measures = "fit of the own caption, in standard deviations of the fits of others'"
            found.append(Finding("undecided", tuple(fits.ids[:1]), sentence, fits.usual, None, measures))
        return found

    def words(self, i: int | str) -> str:
        """The first caption of an image; its id where it has none."""
        item = self._item(i)
        try:
            return captions_of(item, str(i))[0]
        except (TypeError, ValueError):
            return str(i)

    def _of_others(self, ids: Iterable[int | str]) -> str:
        """What leaving images out does to the mean loss of the others, in words."""
        places = {i: place for place, i in enumerate(self.effects.ids)}
        chosen = torch.tensor([places[i] for i in ids], dtype=torch.int64, device="cpu")
        change = self.effects.loss_change[chosen].sum().item()
        error = self.effects.errors[chosen].square().sum().sqrt().item() / self.kernel.unit
        number = f"the mean loss of the others by {format_number(change)} ± {format_number(error).lstrip('+')}"
        return f"{number}{', which is within the noise' if abs(change) <= 2 * error else ''}."

    def _item(self, i: int | str) -> Any:
        return self.dataset[self._positions[i]]

    def _image(self, i: int | str) -> Any:
        return get_image(self.dataset, self._positions[i])

    @cached_property
    def _positions(self) -> dict[int | str, int]:
        return positions_of(ids_of(self.dataset))


def _names(ids: Sequence[int | str]) -> str:
    return ", ".join(map(str, ids[:3])) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
