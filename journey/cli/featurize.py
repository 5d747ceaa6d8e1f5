"""``journey featurize``: measure every image of a folder."""

from __future__ import annotations

import argparse
from functools import partial
from os import environ

from journey.cli.arguments import (
    Commands,
    add_command,
    add_measured,
    add_measuring,
    add_model,
    add_running,
    add_source,
    place,
)
from journey.cli.inputs import load_denoiser, load_measuring
from journey.features.featurize import featurize

EXAMPLES = """
journey featurize --model ./ddpm-cifar10 --data ./images --out features
journey featurize --model ./ddpm-cifar10 --data ./images --out features-by-time --bins 10
journey featurize --model ./ddpm-cifar10 --data "shards/*.tar" --out features --workers 2
RANK=0 WORLD_SIZE=2 journey featurize --model ./ddpm-cifar10 --data ./images --out features
journey featurize --model ./stable-diffusion --lora ./lora --data ./captioned --out lora-features --batch-size auto
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "measure every image of a folder and store its projected gradient"
    parser = add_command(commands, "featurize", text, EXAMPLES, _run)
    add_model(parser)
    add_source(parser)
    add_measured(parser)
    parser.add_argument(
        "--out", type=place, required=True, help="folder of the store, or s3://...; continues what is there"
    )
    add_measuring(parser)
    parser.add_argument(
        "--engine",
        choices=("processes", "ray"),
        default="processes",
        help="this process, beside others that are started likewise (default), or actors on a Ray cluster",
    )
    parser.add_argument(
        "--actors", type=int, nargs="+", metavar="N", help="on Ray: how many, or the fewest and the most"
    )
    parser.add_argument("--num-gpus", type=float, default=0, help="on Ray: GPUs of each actor (default 0)")
    add_running(parser)


def _from_environment(names: tuple[str, ...], default: int) -> int:
    """What ``torchrun`` or a job array says about the processes that share the work: the first that is there."""
    for name in names:
        if name in environ:
            try:
                return int(environ[name])
            except ValueError:
                raise ValueError(f"environment variable {name} must be a number, got {environ[name]!r}") from None
    return default


def _run(options: argparse.Namespace) -> None:
    if options.engine == "ray":
        _run_on_ray(options)
        return
    if options.actors is not None or options.num_gpus:
        raise ValueError("--actors and --num-gpus are of actors on Ray: add --engine ray")
    if options.device == "cuda" and "LOCAL_RANK" in environ:
        options.device = f"cuda:{_from_environment(('LOCAL_RANK',), 0)}"
    first = _from_environment(("SLURM_ARRAY_TASK_MIN",), 0)
    featurize(
        load_denoiser(options),
        options.data,
        options.out,
        **load_measuring(options),
        rank=_from_environment(("RANK",), _from_environment(("SLURM_ARRAY_TASK_ID",), first) - first),
        world_size=_from_environment(("WORLD_SIZE", "SLURM_ARRAY_TASK_COUNT"), 1),
        progress=not options.quiet,
    )


def _run_on_ray(options: argparse.Namespace) -> None:
    from journey.integrations import ray

    actors = options.actors or [1]
    if len(actors) > 2:
        raise ValueError(f"actors must be one number, or the fewest and the most, got {actors}")
    given = load_measuring(options)
    if given["shard_size"] is None:
        del given["shard_size"]
    ray.featurize(
        partial(load_denoiser, options),
        options.data,
        options.out,
        **given,
        actors=(actors[0], actors[-1]),
        num_gpus=options.num_gpus,
        progress=not options.quiet,
    )
