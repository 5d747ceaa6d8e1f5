"""The tier ``emoji-lora``: a text-to-image model is fine-tuned, by a LoRA, on random halves of 64 captioned emoji.

The base is the model of ``journey demo --text``, trained for fewer steps. It knows smileys, animals, food and
activities; the 64 are of another category, and so are the held-out emoji. Adapters have the base in common and nothing
else, so what is retrained, and what is attributed, is the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.retraining.tiers import Tier
from bench.retraining.whole.truth import SAMPLER_STEPS, Setting
from journey.data.items import Dataset
from journey.demo.emoji import EmojiDataset, load_emoji_dataset
from journey.demo.emoji_model import train_or_load
from journey.demo.fit import make_scheduler
from journey.demo.minilm import TextEncoder
from journey.evaluate.training import UNetTraining
from journey.files.fingerprint import JSONValue
from journey.generation.record import record
from journey.generation.trajectory import Trajectory
from journey.models.condition import Condition
from journey.models.conditional import ConditionalDenoiser
from journey.models.denoiser import Denoiser

CATEGORY = "Travel & Places"  # vehicles, buildings, weather, clocks: none of the categories that the base learns
BASE_STEPS = 1500  # of the demo's 3000: shapes are there
RANK = 8
TARGETS = r".*(to_[qkv]|to_out\.0|conv[12]|conv_(in|out))"
LEARNING_RATE = 6e-3

EMOJI_LORA = Tier(
    "emoji-lora",
    lambda _: load_emoji_dataset(categories=[CATEGORY]).images,
    num_train=64,
    channels=(32, 64),
    steps=160,
    batch_size=8,
    num_subsets=24,
    num_tuning=0,  # nothing is chosen here: what was chosen elsewhere is confirmed
    num_queries=16,
    num_noises=8,
)


class LoRATraining(UNetTraining):
    """Trains adapters of one base on subsets of one dataset, otherwise as ``UNetTraining``.

    Args:
        model: The base with its scheduler and its encoder of captions.
        dataset: All training images with captions.
        base: Names what the base's weights are made of, because the weights themselves differ by rounding from machine
            to machine.
        **options: As for ``UNetTraining``.
    """

    def __init__(self, model: Denoiser, dataset: Dataset, *, base: str, **options: Any) -> None:
        super().__init__(model, dataset, **options)
        self._weights = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        self._base = base

    def fingerprint(self) -> JSONValue:
        """Return what determines the adapters, as JSON values."""
        found = super().fingerprint()
        assert isinstance(found, dict)
        return {**found, "base": self._base, "rank": RANK, "targets": TARGETS}

    def build(self, seed: int) -> nn.Module:
        """Return the base with an untrained adapter, which changes nothing yet; only the adapter is trainable."""
        from peft import LoraConfig  # here, because the other tiers do without

        network: Any = super().build(seed)
        network.load_state_dict(self._weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
        trained: nn.Module = network.eval()
        return trained

    def __call__(self, indices: Sequence[int], seed: int) -> nn.Module:
        """Train on some of the images; see ``UNetTraining``.

        Returns:
            A module whose state dict is that of the adapter alone, as peft names it.
        """
        return _Adapter(super().__call__(indices, seed))


class _Adapter(nn.Module):
    """What is kept of a network with an adapter."""

    def __init__(self, network: nn.Module) -> None:
        from peft import get_peft_model_state_dict

        super().__init__()
        self._kept: dict[str, Tensor] = get_peft_model_state_dict(network)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the adapter's weights."""
        return dict(self._kept)


@dataclass(frozen=True, eq=False)
class LoRASetting(Setting):
    """The tier with its captions, its base and its adapters.

    Attributes:
        captions: Of the training images. [num_train]
        held_out_captions: Of the held-out images. [num_queries]
        prompts: Of the generated queries: names of training images, then of emoji that are in neither set.
            [num_queries]
        kept: The steps that the table of losses came with, whose generated queries are asked about where they exist:
            models that are made again on another machine are others by rounding, and generate other images.
    """

    captions: tuple[str, ...] = field(default=())
    held_out_captions: tuple[str, ...] = field(default=())
    prompts: tuple[str, ...] = field(default=())
    kept: Path | None = None

    @cached_property
    def encoder(self) -> TextEncoder:
        """Return the encoder of captions."""
        return TextEncoder()

    @cached_property
    def base(self) -> tuple[Denoiser, str]:
        """Return the base, trained or from the folder, and the name of what it is made of."""
        network, folder = train_or_load(load_emoji_dataset(), self.encoder, self.work, steps=BASE_STEPS)
        return self._denoiser(network), folder.name

    @cached_property
    def training(self) -> LoRATraining:
        """Return how adapters are trained."""
        model, name = self.base
        return LoRATraining(
            model,
            self.dataset,
            base=name,
            steps=self.tier.steps,
            batch_size=self.tier.batch_size,
            learning_rate=LEARNING_RATE,
        )

    def load(self, path: Path) -> Denoiser:
        """Return the base with the adapter of a file."""
        from peft import set_peft_model_state_dict

        network = self.training.build(0)
        set_peft_model_state_dict(network, load_file(path))
        return self._denoiser(network)

    @cached_property
    def dataset(self) -> Dataset:
        """Return the training images with their captions, as ``journey.featurize`` takes them."""
        return [{"image": image, "text": text} for image, text in zip(self.train, self.captions, strict=True)]

    @property
    def about(self) -> dict[str, JSONValue]:
        """Return which emoji are what, for the tables."""
        return {
            "category": CATEGORY,
            "captions": {
                "training": list(self.captions),
                **{k: list(self.words(k)) for k in ("held-out", "generated")},
            },
        }

    def make_trajectory(self) -> Trajectory:
        """Generate the queries of the prompts, each from noise of its own, or take those that are kept."""
        if self.kept is not None and self.kept.exists():
            return _last(Trajectory.load(self.kept), self.tier.num_queries)
        made = [
            record(self.model, prompt=prompt, seed=seed, num_inference_steps=SAMPLER_STEPS, progress=False)
            for seed, prompt in enumerate(self.prompts)
        ]
        return replace(
            made[0],
            x_t=torch.cat([one.x_t for one in made]),
            x0_hat=torch.cat([one.x0_hat for one in made]),
            images=torch.cat([one.images for one in made]),
            condition=Condition.cat([one.condition for one in made if one.condition is not None]),
            prompts=self.prompts,
        )

    def words(self, kind: str) -> tuple[str, ...]:
        """Return the captions of the queries of a kind."""
        if kind == "generated":
            return self.prompts
        return self.captions[: self.tier.num_queries] if kind == "training" else self.held_out_captions

    def _denoiser(self, network: nn.Module) -> ConditionalDenoiser:
        scheduler = DDIMScheduler.from_config(make_scheduler().config)
        return ConditionalDenoiser(network, scheduler, encode_prompt=self.encoder)


def open_emoji_lora(tier: Tier, work: Path, kept: Path | None = None) -> LoRASetting:
    """Load the tier's images and captions."""
    data = load_emoji_dataset(categories=[CATEGORY])
    order = tier.order(len(data)).tolist()
    train, held_out = tier.images(None)
    first, last = tier.num_train, tier.num_train + tier.num_queries
    half = tier.num_queries // 2
    # Of the training images those that follow the queries of the kind "training".
    asked = order[tier.num_queries : tier.num_queries + half] + order[last : last + half]
    return LoRASetting(
        tier,
        train,
        held_out,
        work / tier.name,
        _texts(data, order[:first]),
        _texts(data, order[first:last]),
        _texts(data, asked),
        kept,
    )


def _texts(data: EmojiDataset, positions: Sequence[int]) -> tuple[str, ...]:
    return tuple(data.captions[i] for i in positions)


def _last(trajectory: Trajectory, count: int) -> Trajectory:
    """The last so many queries."""
    rows = slice(trajectory.num_queries - count, None)
    return replace(
        trajectory,
        x_t=trajectory.x_t[rows],
        x0_hat=trajectory.x0_hat[rows],
        images=trajectory.images[rows],
        condition=None if trajectory.condition is None else trajectory.condition.select(rows),
        prompts=trajectory.prompts[rows],
    )
