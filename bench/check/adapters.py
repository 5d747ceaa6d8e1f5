"""LoRAs that are trained on planted folders, on the base of the text demo, and their features."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from diffusers import DDIMScheduler
from safetensors.torch import load_file

import journey
from bench.check.folders import Planted
from bench.retraining.emoji_lora import BASE_STEPS, LEARNING_RATE, LoRATraining
from journey.demo.emoji import load_emoji_dataset
from journey.demo.emoji_model import train_or_load
from journey.demo.fit import make_scheduler
from journey.demo.minilm import TextEncoder
from journey.evaluate.retrain import Run, retrain
from journey.features.features import Features
from journey.models.conditional import ConditionalDenoiser

STEPS = 160
BATCH_SIZE = 8
PSEUDO_GRADIENTS = 512  # as journey check takes


@dataclass(frozen=True)
class Trained:
    """A model of a folder.

    Attributes:
        model: The base with the adapter.
        training: How it was trained, and would be without some images.
        features: Of the folder's images.
        seconds: Wall time that training and measuring took.
    """

    model: ConditionalDenoiser
    training: LoRATraining
    features: Features
    seconds: dict[str, float]


@cache
def encoder() -> TextEncoder:
    """Return the encoder of captions."""
    return TextEncoder()


@cache
def base(work: Path) -> tuple[ConditionalDenoiser, str]:
    """Return the base of the text demo, trained once, and its name."""
    network, folder = train_or_load(load_emoji_dataset(), encoder(), work, steps=BASE_STEPS)
    scheduler = DDIMScheduler.from_config(make_scheduler().config)
    return ConditionalDenoiser(network, scheduler, encode_prompt=encoder()), folder.name


def train(planted: Planted, work: Path, name: str) -> Trained:
    """Train an adapter on a folder and measure its images, or take what an earlier run made.

    Args:
        planted: The folder.
        work: Where models and features are kept.
        name: Names the folder there.

    Returns:
        The model.
    """
    from peft import set_peft_model_state_dict

    model, base_name = base(work)
    training = LoRATraining(
        model,
        planted.dataset,
        base=base_name,
        steps=STEPS,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
    )
    begin = time.perf_counter()
    runs = [Run(tuple(range(len(planted.images))), 0)]
    path = retrain(training, runs, work / name / "models", progress=False)[0]
    trained = time.perf_counter()
    network = training.build(0)
    set_peft_model_state_dict(network, load_file(path))
    adapted = ConditionalDenoiser(network, model.scheduler, encode_prompt=encoder())
    fit = journey.fit(adapted, planted.dataset, work / name / "fit", pseudo_gradients=PSEUDO_GRADIENTS, progress=False)
    features = journey.featurize(adapted, planted.dataset, work / name / "features", fit=fit, progress=False)
    seconds = {"train": trained - begin, "featurize": time.perf_counter() - trained}
    return Trained(adapted, training, features, seconds)
