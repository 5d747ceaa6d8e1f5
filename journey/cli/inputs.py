"""What the arguments of subcommands stand for: models, data, features, generations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from journey.cli.arguments import DRAWS, MEASUREMENTS, PROJECTORS, RECORDING
from journey.data.folder import ImageFolder
from journey.features.features import Features
from journey.features.open import open_features
from journey.generation.record import record
from journey.generation.trajectory import Trajectory
from journey.measure.measurements import Measurement
from journey.models.denoiser import Denoiser
from journey.models.load import as_denoiser, load_pipeline
from journey.models.lora_files import load_lora
from journey.models.video import VideoDenoiser
from journey.projectors.base import Projector

TRAJECTORY = "trajectory.safetensors"


def load_denoiser(options: argparse.Namespace) -> Denoiser:
    """Return the model that the arguments of ``add_model`` name, on its device.

    Raises:
        ValueError: If there is no such device, the model does not take all of the LoRA weights, or it makes no videos
            of the size that is asked for.
    """
    device, video_size = _device(options.device), getattr(options, "video_size", None)
    model = load_pipeline(options.model, dtype=options.dtype, variant=options.variant)
    if options.lora is not None:
        load_lora(model, *options.lora)
    denoiser = as_denoiser(model, latents=options.latents, seed=options.seed)
    if video_size is not None:
        if not isinstance(denoiser, VideoDenoiser):
            raise ValueError(f"video-size must be of a model of videos, got {type(denoiser).__name__}")
        denoiser.video_size = tuple(video_size)
        denoiser.shape_of(None)  # refuses what the model cannot make
    for part in (denoiser.network, *denoiser.frozen.values()):
        part.to(device)
    return denoiser


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device, dtype=torch.float32)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        raise ValueError(f"device must be one that torch can use, such as cpu or cuda, got {name}: {error}") from None
    return device


def load_features(options: argparse.Namespace, denoiser: Denoiser) -> Features:
    """Return the features that the arguments of ``add_features`` name."""
    return open_features(
        options.features, denoiser, fit=options.fit, checkpoints=options.checkpoints, select=options.select
    )


def load_projection(options: argparse.Namespace) -> tuple[Measurement, Projector]:
    """Return what the arguments of ``add_projection`` name."""
    measurement: Measurement = MEASUREMENTS[options.measurement]()
    return measurement, PROJECTORS[options.projector](options.proj_dim, seed=options.seed)


def load_measuring(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``journey.featurize`` that those of ``add_measuring`` and ``add_measured`` name."""
    num_draws = options.num_draws if options.num_draws is not None else 20 if options.bins == 1 else 2
    measurement, projector = load_projection(options)
    return {
        "fit": options.fit,
        "measurement": measurement,
        "draws": DRAWS[options.draws](num_draws=num_draws, bins=options.bins, seed=options.seed),
        "projector": projector,
        "checkpoints": options.checkpoints,
        "select": options.select,
        "batch_size": options.batch_size,
        "memory": None if options.memory is None else int(options.memory * 2**30),
        "row": options.row,
        "shard_size": options.shard_size,
        "workers": options.workers,
        "on_error": options.on_error,
    }


def load_data(options: argparse.Namespace, denoiser: Denoiser) -> ImageFolder:
    """Return the training images in the size that the model takes."""
    return ImageFolder(options.data, size=denoiser.sample_size, channels=denoiser.in_channels or 3)


def record_images(options: argparse.Namespace, denoiser: Denoiser) -> Trajectory:
    """Generate what the arguments of ``add_recording`` ask for."""
    given = {name: getattr(options, option) for name, option in RECORDING.items()}
    given = {name: value for name, value in given.items() if value is not None}
    return record(denoiser, seed=options.seed, progress=not options.quiet, **given)


def load_trajectory(options: argparse.Namespace) -> Trajectory:
    """Return the generation that ``--trajectory`` names.

    Raises:
        ValueError: If it is also said what to generate.
        FileNotFoundError: If there is none.
    """
    excess = [option for option in RECORDING.values() if getattr(options, option, None) is not None]
    if excess:
        names = ", ".join(f"--{option.replace('_', '-')}" for option in excess)
        raise ValueError(f"trajectory was recorded already: leave out {names}, or record anew without --trajectory")
    path: Path = options.trajectory
    file = path / TRAJECTORY if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(
            f"trajectory must be a folder or file that record or score wrote, got {path}: no {file}"
        )
    return Trajectory.load(file)


def parse_ids(words: list[str], known: Sequence[int | str]) -> list[int | str]:
    """Return ids as features have them: numbers where theirs are.

    Raises:
        ValueError: If theirs are numbers and a word is none.
    """
    if known and isinstance(known[0], str):
        return list(words)
    try:
        return [int(word) for word in words]
    except ValueError:
        raise ValueError(f"ids must be numbers, as those of the features are, got {' '.join(words)}") from None


def load_function(name: str) -> Callable[..., Any]:
    """Return a function of the user's by its name.

    Args:
        name: ``module:function``; the working folder is searched first.

    Returns:
        The function.

    Raises:
        ValueError: If the name has another form, or the module has no such function.
        ImportError: If there is no such module.
    """
    module_name, separator, function_name = name.partition(":")
    if not (module_name and separator and function_name):
        raise ValueError(f"classifier must be MODULE:FUNCTION, such as my_classifiers:is_red, got {name!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"classifier {name} cannot be imported from {Path.cwd()} or the installed: {error}"
        ) from error
    found = getattr(module, function_name, None)
    if not callable(found):
        raise ValueError(f"classifier must be a function of {module_name}, got {function_name!r} that is none")
    return found  # type: ignore[no-any-return]
