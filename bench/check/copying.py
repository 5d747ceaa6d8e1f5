"""AUC of ``journey.copies`` on exact and altered copies, beside pixels, structure and an embedding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import journey
from bench.check.adapters import Trained, train
from bench.check.folders import COPIES, Planted, altered, plant
from journey.audit.similarity import pixel_distance, structural_similarity
from journey.methods.baselines import embedding
from journey.models.denoiser import Denoiser

NUM_COPIES = 6  # of each kind and folder
NULL = 20  # held-out images that p-values are read off; the others are negatives
OURS, PIXELS, STRUCTURE, EMBEDDING = "journey.copies", "pixels", "structure (SSIM)", "embedding (UNet, middle)"
_LEVEL = 100  # timestep at which the network sees the image that it embeds


def folder(seed: int, known: bool, work: Path) -> dict[str, Any]:
    """Ask about copies of a folder's images and about held-out images, or read what an earlier run found.

    A copy has the caption of its original, as a generation has the prompt that it was made from. Held-out images that
    stand beside them have the same captions: else the captions would tell them from copies.

    Args:
        seed: Names the folder.
        known: As for ``plant``.
        work: Where models, features and results are kept.

    Returns:
        By method and kind how near each image is to its nearest training image; p-values; right answers.
    """
    name = f"{'known' if known else 'unknown'}-{seed}"
    kept = work / name / "copies.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    planted = plant(seed, known=known)
    trained = train(planted, work, name)
    draw = np.random.default_rng([seed, 99])
    faulty = {*planted.duplicate, planted.bad}
    whole = [i for i in range(len(planted.images)) if i not in faulty]
    chosen = draw.permutation(whole)[:NUM_COPIES].tolist()
    queries = {kind: torch.stack([altered(kind, planted.images[i], draw) for i in chosen]) for kind in COPIES}
    queries["held out"] = planted.held_out[NULL:]
    found = _measure(planted, trained, queries, chosen)
    kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _measure(planted: Planted, trained: Trained, queries: dict[str, Tensor], chosen: list[int]) -> dict[str, Any]:
    images = torch.cat(list(queries.values()))
    others = len(queries["held out"])
    captions = [planted.captions[i] for i in chosen] * len(COPIES) + [
        planted.captions[chosen[i % len(chosen)]] for i in range(others)
    ]
    asked = journey.copies(
        trained.features,
        _told(images, captions),
        held_out=_told(planted.held_out[:NULL], planted.held_out_captions[:NULL]),
        dataset=planted.dataset,
        progress=False,
    )
    embed = _embedder(trained.model)
    pairs = {
        PIXELS: -pixel_distance(images, planted.images),
        STRUCTURE: structural_similarity(images, planted.images),
        EMBEDDING: embedding(planted.images, images, embed, cosine=True),
    }
    near = {OURS: [copy.cosines[0] for copy in asked], **{name: p.amax(1).tolist() for name, p in pairs.items()}}
    which = {OURS: [copy.ids[0] for copy in asked], **{name: p.argmax(1).tolist() for name, p in pairs.items()}}
    result: dict[str, Any] = {"near": {}, "right": {}, "p values": {}}
    first = 0
    for kind, some in queries.items():
        part = slice(first, first + len(some))
        first += len(some)
        result["p values"][kind] = [copy.p_value for copy in asked[part]]
        for name in near:
            result["near"].setdefault(name, {})[kind] = near[name][part]
            if kind != "held out":
                right = [found == i for found, i in zip(which[name][part], chosen, strict=True)]
                result["right"].setdefault(name, {})[kind] = right
    return result


def _told(images: Tensor, captions: Sequence[str]) -> list[dict[str, Any]]:
    return [{"image": image, "text": text} for image, text in zip(images, captions, strict=True)]


def _embedder(model: Denoiser) -> Any:
    """The network's innermost activations for hardly noised images, without a caption."""
    network: Any = model.network
    null = model.null_condition()

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        kept: list[Tensor] = []
        hook = network.mid_block.register_forward_hook(lambda _, __, output: kept.append(output))
        try:
            times = torch.full((len(images),), _LEVEL, dtype=torch.int64)
            signal, _ = model.schedule.signal_and_sigma(times)
            model.predict(signal.view(-1, 1, 1, 1) * images, times, null.expand(len(images)))
        finally:
            hook.remove()
        return kept[0]

    return embed


def auc(copies: list[float], others: list[float]) -> float:
    """Probability that a copy is nearer than another image; equal ones count half."""
    a, b = torch.tensor(copies, dtype=torch.float64), torch.tensor(others, dtype=torch.float64)
    return ((a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()).mean().item()


def interval(folders: list[dict[str, Any]], name: str, kind: str, *, num_bootstrap: int = 1000) -> list[float]:
    """Return the mean AUC over folders with its 95 % bootstrap interval over folders and their images."""
    draw = np.random.default_rng(0)
    pairs = [(found["near"][name][kind], found["near"][name]["held out"]) for found in folders]
    means = []
    for _ in range(num_bootstrap):
        some = draw.integers(len(pairs), size=len(pairs))
        values = [auc(*(draw.choice(part, len(part)).tolist() for part in pairs[i])) for i in some]
        means.append(np.mean(values))
    value = np.mean([auc(*pair) for pair in pairs])
    return [float(value), *(float(np.quantile(means, q)) for q in (0.025, 0.975))]
