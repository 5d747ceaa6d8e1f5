"""The text-to-image demo: named emoji, from training to a report on one prompt.

Trains a small UNet that reads captions on Twemoji, or takes the one trained before, makes images of a prompt with
guidance, scores every training image along the steps, writes a page and a picture, and compares the captions of the
strongest proponents with the prompt.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusers import DDIMScheduler

from journey.demo.captions import Match, distinct_proponents, match, nearest, share_a_word
from journey.demo.digits_demo import SAMPLER_STEPS, SHOWN, TOP, Clock
from journey.demo.emoji import CREDIT, CREDIT_URL, EmojiDataset, load_emoji_dataset
from journey.demo.emoji_model import train_or_load
from journey.demo.fit import make_scheduler
from journey.demo.minilm import TextEncoder
from journey.features.featurize import featurize
from journey.generation.record import record
from journey.generation.trajectory import Trajectory
from journey.measure.draws import StratifiedDraws
from journey.models.conditional import ConditionalDenoiser
from journey.report.run import Run
from journey.scores.score import score
from journey.scores.scores import Scores

# Above 2 the colours of a model this small leave the range and the shapes go with them.
_GUIDANCE = 1.5


@dataclass(frozen=True)
class TextDemoResult:
    """What the demo found.

    Attributes:
        prompt: What was asked for.
        nearest: The name of the emoji that is nearest to it in meaning.
        category: What that emoji belongs to.
        num_images: How many images were made.
        timesteps: The scored steps. [num_steps]
        num_proponents: How many training images are among the top proponents of any image, per step. [num_steps]
        matches: What they have in common with the prompt.
        ranks: Place of the nearest emoji among all training images, 1 for the strongest proponent; median over the
            images, per step. [num_steps]
        seconds: How long each part took.
    """

    prompt: str
    nearest: str
    category: str
    num_images: int
    timesteps: list[int]
    num_proponents: list[int]
    matches: list[Match]
    ranks: list[float]
    seconds: dict[str, float]


def default_cache() -> Path:
    """Return where trained models are kept if nothing else is said: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "journey"


def run_text_demo(
    out: Path,
    text: str,
    *,
    cache: Path | None = None,
    seed: int = 0,
    num_images: int = 4,
    train_steps: int = 3000,
    num_draws: int = 20,
    progress: bool = True,
) -> TextDemoResult:
    """Run the demo on one prompt.

    Args:
        out: Folder for the trajectory, the scores, ``report.html`` and ``report.png``.
        text: The prompt, up to about twelve words.
        cache: Folder for the trained model and the features of its training images, which every prompt shares;
            ``default_cache()`` by default. What it holds is used only if it fits.
        seed: Names the images and the draws of the queries. The model and the training images' draws do not depend on
            it, so that all seeds share them.
        num_images: Images to make of the prompt.
        train_steps: Optimiser steps of the model.
        num_draws: Timesteps per training image.
        progress: Show progress bars.

    Returns:
        What the proponents' captions have in common with the prompt, and the time each part took.

    Raises:
        ModuleNotFoundError: If a package of the extra ``demo-text`` is not installed.
        ValueError: If the prompt is empty or too long, or a number is not positive.
        OSError: If a folder cannot be written to.
    """
    if not text.strip():
        raise ValueError(f"text must be a prompt of at least one word, got {text!r}")
    seconds: dict[str, float] = {}
    clock = Clock(seconds)
    dataset = load_emoji_dataset()
    encoder = TextEncoder()
    vectors = encoder.embed([text, *dataset.captions])  # first of all, because it refuses a prompt that is too long
    like = nearest(text, dataset.captions, vectors[0], vectors[1:])
    out.mkdir(parents=True, exist_ok=True)
    unet, folder = train_or_load(dataset, encoder, cache or default_cache(), steps=train_steps, progress=progress)
    clock.lap("train or load")

    # The deterministic sampler, on the schedule that the model was trained for.
    scheduler = DDIMScheduler.from_config(make_scheduler().config)
    denoiser = ConditionalDenoiser(unet, scheduler, encode_prompt=encoder)
    trajectory = record(
        denoiser,
        prompt=text,
        guidance_scale=_GUIDANCE,
        seed=seed,
        num_images=num_images,
        num_inference_steps=SAMPLER_STEPS,
        progress=progress,
    )
    clock.lap("record")

    features = featurize(
        denoiser,
        dataset,
        folder / f"features-{num_draws}",
        draws=StratifiedDraws(num_draws),
        progress=progress,
    )
    clock.lap("featurize")

    steps = [int(trajectory.timesteps[int(fraction * SAMPLER_STEPS)]) for fraction in SHOWN]
    scores = score(features, trajectory, steps=steps, seed=seed, progress=progress)
    clock.lap("score")

    category = dataset.categories[like]
    proponents = distinct_proponents(scores, TOP)
    matches = [
        match("a word of the prompt in the caption", share_a_word(text, dataset.captions), proponents),
        match(f'category "{category}"', [found == category for found in dataset.categories], proponents),
    ]
    _write_pages(out, trajectory, scores, dataset, like, train_steps)
    clock.lap("report")
    result = TextDemoResult(
        text,
        dataset.captions[like],
        category,
        num_images,
        steps,
        [len(ids) for ids in proponents],
        matches,
        (1 + (scores.values > scores.values[..., [like]]).sum(-1)).double().quantile(0.5, 0).tolist(),
        seconds,
    )
    (out / "result.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result


def _write_pages(
    out: Path, trajectory: Trajectory, scores: Scores, dataset: EmojiDataset, like: int, train_steps: int
) -> None:
    """Write ``report.html`` and ``report.png``, both with the credit, because either may travel alone."""
    text, size = trajectory.prompts[0], dataset.images.shape[-1]
    notes = [
        f"Model: a UNet of 1.2 million parameters that reads captions through all-MiniLM-L6-v2, trained for "
        f"{train_steps:,} steps on {len(dataset)} emoji with their names; guidance {trajectory.guidance_scale:g}.",
        f'Nearest emoji to the prompt: "{dataset.captions[like]}" ({dataset.categories[like]}).',
        f"{CREDIT} Reduced to {size}x{size} pixels on white. {CREDIT_URL}",
    ]
    title = f'Which training images steered "{text}"?'
    run = Run(trajectory, scores, dataset, labels=dataset.captions, notes=notes, title=title, credit=CREDIT)
    run.save(out)
    run.write_report(out / "report.html")
    run.write_png(out / "report.png")


def format_text_result(result: TextDemoResult) -> str:
    """Return the demo's findings as a small table."""

    def row(name: str, cells: list[str]) -> str:
        return f"  {name:<38}" + "".join(f"{cell:>9}" for cell in cells)

    lines = [
        f'Prompt "{result.prompt}"; the nearest emoji is "{result.nearest}" ({result.category}).',
        f"Training images among the top {TOP} proponents of any of {result.num_images} images, each counted once:",
        row("step", [str(t) for t in result.timesteps] + ["chance"]),
        row("proponents", [str(n) for n in result.num_proponents]),
    ]
    for found in result.matches:
        shares = [f"{count / n:.0%}" for count, n in zip(found.counts, result.num_proponents, strict=True)]
        lines.append(row(found.name, [*shares, f"{found.chance:.1%}"]))
        lines.append(row("  p, binomial test, one-sided", [f"{p:.1g}" for p in found.p_values]))
    lines.append(row(f'rank of "{result.nearest}", median', [f"{rank:g}" for rank in result.ranks]))
    lines += ["", "Seconds: " + ", ".join(f"{part} {value:.0f}" for part, value in result.seconds.items()), CREDIT]
    return "\n".join(lines)
