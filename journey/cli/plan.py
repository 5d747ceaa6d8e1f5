"""``journey plan``: what featurizing will take, before it starts."""

from __future__ import annotations

import argparse

from journey.cli.arguments import Commands, add_command, add_measured, add_measuring, add_model, add_running, add_source
from journey.cli.inputs import load_denoiser, load_measuring
from journey.features.plan import plan

EXAMPLES = """
journey plan --model ./ddpm-cifar10 --data ./images --devices 8
journey plan --model ./stable-diffusion --lora ./lora --data ./some-of-them --num-images 1000000 --row int4
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "measure a few batches and say what featurize will take: hours, bytes, memory; writes nothing"
    parser = add_command(commands, "plan", text, EXAMPLES, _run)
    add_model(parser)
    add_source(parser)
    add_measured(parser)
    add_measuring(parser)
    parser.add_argument(
        "--devices", type=int, default=1, help="devices such as this one that share the work (default 1)"
    )
    parser.add_argument("--num-images", type=int, help="plan for so many images like these (default: those of --data)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure, about (default 20)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
    denoiser = load_denoiser(options)
    planned = plan(
        denoiser,
        options.data,
        **load_measuring(options),
        devices=options.devices,
        num_images=options.num_images,
        seconds=options.seconds,
    )
    print(planned.to_json() if options.json else planned)
