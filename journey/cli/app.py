"""``journey app``: questions asked in a browser, at an address of this machine."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from journey.app.serve import load_gradio, serve
from journey.app.workbench import Unseen, Workbench, groups_of_captions
from journey.cli.arguments import Commands, add_command, add_features, add_model, add_running
from journey.cli.groups import read_groups
from journey.cli.inputs import load_data, load_denoiser, load_features, load_function
from journey.cli.score import check_data

EXAMPLES = """
journey app --model ./ddpm-cifar10 --features features --data ./images
journey app --model ./stable-diffusion --lora style.safetensors --features features --data ./captioned --port 8000
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "ask in a browser: generate, move along the steps, paint a part; needs the extra [app]"
    parser = add_command(commands, "app", text, EXAMPLES, _run)
    add_model(parser)
    add_features(parser)
    parser.add_argument("--data", type=Path, help="folder of the training images (default: shown by their ids alone)")
    parser.add_argument(
        "--groups", type=Path, metavar="CSV", help="file with the columns id and group (default: captions, if shared)"
    )
    parser.add_argument(
        "--classifier",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="a feature whose steps may be asked for, as for transitions; may be repeated",
    )
    parser.add_argument("--num-scored", type=int, default=8, help="steps to score, evenly spread (default 8)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
    if options.num_scored < 1:
        raise ValueError(f"num_scored must be at least 1, got {options.num_scored}")
    load_gradio()  # refused before the work and not after
    workbench = load_workbench(options)
    workbench.prepare()
    blocks, address = serve(workbench, host=options.host, port=options.port)
    print(f"Open {address} in a browser; Ctrl-C ends it.", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        blocks.close(verbose=False)


def load_workbench(options: argparse.Namespace) -> Workbench:
    """Return what the arguments of the command name."""
    denoiser = load_denoiser(options)
    features = load_features(options, denoiser)
    classifiers = {name.partition(":")[2]: load_function(name) for name in options.classifier}
    given: dict[str, Any] = {"classifiers": classifiers, "num_scored": options.num_scored, "seed": options.seed}
    integers = isinstance(features.ids[0], int)
    groups: dict[str, Any] = {} if options.groups is None else dict(read_groups(options.groups, integers=integers))
    if options.data is None:
        return Workbench(features, Unseen(features), groups=groups, **given)
    dataset = load_data(options, denoiser)
    check_data(features, dataset)
    labels = dataset.labels
    if options.groups is None:
        groups = groups_of_captions(features, dataset, labels)
    return Workbench(features, dataset, labels=labels, groups=groups, **given)
