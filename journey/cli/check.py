"""``journey check``: what is wrong with a training set, on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from journey.audit.captions import FEWEST_CAPTIONS
from journey.audit.check import check
from journey.audit.page import write_page
from journey.cli.arguments import (
    Commands,
    add_command,
    add_damping,
    add_data,
    add_measured,
    add_measuring,
    add_model,
    add_running,
    folder,
)
from journey.cli.inputs import load_data, load_denoiser, load_measuring
from journey.cli.outputs import prepare_folder
from journey.data.ids import ids_of
from journey.features.featurize import featurize
from journey.features.fit import fit

# Of a small set: as many as 26 images cost. The Gram matrix is half of the images' own gradients all the same.
_PSEUDO_GRADIENTS = 512

EXAMPLES = """
journey check --model ./stable-diffusion --lora ./lora --data ./captioned --out check
journey check --model ./stable-diffusion --lora ./lora --data ./captioned --prompts "a red apple" --out check
journey check --model ./ddpm-digits --data ./digits --out check --num-draws 80
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "look for duplicates, wrong captions, images that do not belong, and what is learned by heart; writes a page"
    parser = add_command(commands, "check", text, EXAMPLES, _run)
    add_model(parser)
    add_data(parser)
    add_measured(parser)
    parser.add_argument(
        "--prompts", nargs="+", metavar="TEXT", help="also look for images that work against what these prompts make"
    )
    parser.add_argument(
        "--out", type=folder, required=True, help="folder for the page, the tables and the features; continues"
    )
    add_damping(parser)
    add_measuring(parser)
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
    out: Path = options.out
    prepare_folder(out)
    denoiser = load_denoiser(options)
    data = load_data(options, denoiser)
    given, progress = load_measuring(options), not options.quiet
    if len(data) < FEWEST_CAPTIONS:
        raise ValueError(f"data must be at least {FEWEST_CAPTIONS} images to compare them, got {len(data)}")
    if given["draws"].num_draws < 4:
        raise ValueError(
            f"num_draws must be at least 4, of which two halves tell the noise, got {given['draws'].num_draws}"
        )
    if given["fit"] is None:
        names = ("measurement", "projector", "checkpoints", "select", "on_error")
        told = {name: given[name] for name in names}
        given["fit"] = fit(denoiser, data, out / "fit", **told, pseudo_gradients=_PSEUDO_GRADIENTS, progress=progress)
    features = featurize(denoiser, data, out / "features", **given, progress=progress)
    gone = set(features.ids).difference(ids_of(data))
    features = features.without(gone) if gone else features  # images that were taken out since an earlier run
    found = check(
        features,
        data,
        prompts=options.prompts,
        damping=options.damping,
        seed=options.seed,
        progress=progress,
    )
    page = write_page(out / "check.html", found, data, labels=data.labels)
    for line in found.summary():
        print(line)
    for path in (page, *found.save(out)):
        print(path)
