"""``journey record``: generate images and keep every step."""

from __future__ import annotations

import argparse
from pathlib import Path

from journey.cli.arguments import Commands, add_command, add_model, add_recording, add_running, folder
from journey.cli.inputs import TRAJECTORY, load_denoiser, record_images
from journey.cli.outputs import prepare_folder, save_media

EXAMPLES = """
journey record --model ./ddpm-cifar10 --num-images 4 --out generated
journey record --model ./stable-diffusion --prompt "a red apple" --guidance 5 --out apple
journey record --model ./dit --class-label 207 360 --out dogs
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "generate images and keep x_t and the predicted image at every step"
    parser = add_command(commands, "record", text, EXAMPLES, _run)
    add_model(parser)
    add_recording(parser)
    parser.add_argument("--out", type=folder, required=True, help=f"folder for {TRAJECTORY} and the images")
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
    out: Path = options.out
    prepare_folder(out)
    denoiser = load_denoiser(options)
    trajectory = record_images(options, denoiser)
    trajectory.save(out / TRAJECTORY)
    print(out / TRAJECTORY)
    for i, image in enumerate(trajectory.image_pixels):
        path = save_media(image, out, str(i), sampling_rate=getattr(denoiser, "sampling_rate", None))
        print(path, *trajectory.prompts[i : i + 1])
