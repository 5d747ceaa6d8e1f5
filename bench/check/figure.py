"""What a LoRA makes of its own captions, beside the training images that it copies: ``python -m bench.check.figure``.

The adapter of a planted folder (see ``bench.check``) makes an image of each caption, and ``journey.copies`` finds the
training image nearest to it. The picture has the six with the largest cosines. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import journey
from bench.check.adapters import train
from bench.check.copying import NULL
from bench.check.folders import plant

SHOWN, STEPS = 6, 30


def main() -> int:
    """Draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m bench.check.figure", description=__doc__)
    parser.add_argument("--seed", type=int, default=100, help="names the folder")
    parser.add_argument("--work", type=Path, default=Path("build/check"), help="folder of models and features")
    parser.add_argument("--out", type=Path, default=Path("docs/results/copies.png"))
    options = parser.parse_args()
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    planted = plant(options.seed, known=True)
    trained = train(planted, options.work, f"known-{options.seed}")
    faulty = {*planted.duplicate, *planted.swapped, planted.bad}
    chosen = [i for i in range(len(planted.images)) if i not in faulty]
    captions = [planted.captions[i] for i in chosen]
    made = journey.record(trained.model, prompt=captions, seed=0, num_inference_steps=STEPS)

    def told(images: Any, texts: Any) -> list[dict[str, Any]]:
        return [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)]

    found = journey.copies(
        trained.features,
        told(made.images, captions),
        held_out=told(planted.held_out[:NULL], planted.held_out_captions[:NULL]),
        dataset=planted.dataset,
    )
    order = sorted(range(len(found)), key=lambda i: -found[i].cosines[0])[:SHOWN]
    figure, axes = plt.subplots(2, SHOWN, figsize=(1.8 * SHOWN, 4.2), layout="constrained")
    for column, query in enumerate(order):
        nearest = int(found[query].ids[0])
        for axis, picture in zip(axes[:, column], (made.images[query], planted.images[nearest]), strict=True):
            axis.imshow((picture.clamp(-1, 1).permute(1, 2, 0) + 1) / 2, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0, column].set_title(captions[query], fontsize=9, wrap=True)
        axes[1, column].set_xlabel(f"cosine {found[query].cosines[0]:.2f}, p = {found[query].p_value:.2f}", fontsize=9)
    axes[0, 0].set_ylabel("generated")
    axes[1, 0].set_ylabel("nearest trained on")
    figure.savefig(options.out, dpi=110, metadata={"Software": None})
    right = sum(int(copy.ids[0]) == i for copy, i in zip(found, chosen, strict=True))
    sure = sum(copy.p_value <= 0.05 for copy in found)
    print(f"of {len(found)}: nearest is the caption's own image {right}, p <= .05 {sure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
