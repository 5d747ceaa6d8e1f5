"""Arguments that several subcommands share, and what they stand for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from journey.data.folder import ImageFolder
from journey.features.features import Features
from journey.features.open import open_features
from journey.generation.record import record
from journey.generation.trajectory import Trajectory
from journey.models.denoiser import Denoiser
from journey.models.load import as_denoiser, load_pipeline
from journey.scores.spectrum import DEFAULT_DAMPING

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

TRAJECTORY = "trajectory.safetensors"
# Arguments of a command by those of ``journey.record``.
_RECORDING = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "class_labels": "class_label",
    "guidance_scale": "guidance",
    "num_images": "num_images",
    "num_inference_steps": "num_inference_steps",
    "size": "size",
}


def add_command(
    commands: Commands, name: str, text: str, examples: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Add a subcommand with the arguments that all have.

    Args:
        commands: Where to add it.
        name: What it is called by.
        text: What it does, in one line.
        examples: Command lines, one per line, shown below the help.
        run: Does the job.

    Returns:
        Its parser.
    """
    indented = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"examples:\n{indented}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add how a command runs: ``--quiet`` and ``--threads``."""
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")


@contextmanager
def hidden_bars() -> Iterator[None]:
    """Hide the bars that other libraries show while they load models; afterwards they are as they were."""
    # transformers is there only if diffusers found it.
    found = [import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers") if name in sys.modules]
    shown = [library for library in found if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def add_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the model, its device and the seed."""
    parser.add_argument("--model", required=required, help="path or repo id of a saved diffusers pipeline")
    parser.add_argument("--lora", metavar="PATH", help="LoRA weights to load; then they alone are measured")
    parser.add_argument(
        "--latents",
        choices=("mean", "sample"),
        default="mean",
        help="of the VAE's posterior: its mean (default), or one sample for each image",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--seed", type=int, default=0, help="names everything random (default 0)")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the training images."""
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help='folder of training images; captions ("text") and labels ("label") in its metadata.jsonl',
    )


def add_measured(parser: argparse.ArgumentParser) -> None:
    """Add what is measured of the model."""
    parser.add_argument(
        "--select", nargs="+", metavar="PATTERN", help='parameters to measure, such as "*.attn*" (default: all)'
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="weights to measure under, averaged in the scores (default: the model's own)",
    )


def add_features(parser: argparse.ArgumentParser) -> None:
    """Add the stored features, with what must be as it was when they were made."""
    parser.add_argument("--features", type=Path, required=True, help="folder that featurize wrote")
    add_measured(parser)


def add_recording(parser: argparse.ArgumentParser) -> None:
    """Add what is generated; ``None`` stands for the default of ``journey.record``."""
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="what a text model is to show, one or several")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    parser.add_argument("--class-label", type=int, nargs="+", metavar="N", help="of a class-conditional model")
    parser.add_argument("--guidance", type=float, help="strength of guidance (default: that of the pipeline)")
    parser.add_argument("--num-images", type=int, help="images to generate, of each prompt (default 1)")
    parser.add_argument("--num-inference-steps", type=int, help="steps of the sampler (default 50)")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="in pixels (default: the model's)"
    )


def add_trajectory(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add a recorded generation."""
    parser.add_argument(
        "--trajectory", type=Path, required=required, metavar="PATH", help="what record or score wrote: folder or file"
    )


def load_denoiser(options: argparse.Namespace) -> Denoiser:
    """Return the model that the arguments of ``add_model`` name, on its device.

    Raises:
        ValueError: If there is no such device, or LoRA weights are given for a model that takes none.
    """
    model, device = options.model, _device(options.device)
    if options.lora is not None:
        model = load_pipeline(model)
        if not hasattr(model, "load_lora_weights"):
            raise ValueError(
                "lora needs a pipeline with load_lora_weights, such as StableDiffusionPipeline, got "
                f"{type(model).__name__}"
            )
        model.load_lora_weights(options.lora)
    denoiser = as_denoiser(model, latents=options.latents, seed=options.seed)
    for part in (denoiser.network, *denoiser.frozen.values()):
        part.to(device)
    return denoiser


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        raise ValueError(f"device must be one that torch can use, such as cpu or cuda, got {name}: {error}") from None
    return device


def load_features(options: argparse.Namespace, denoiser: Denoiser) -> Features:
    """Return the features that the arguments of ``add_features`` name."""
    return open_features(options.features, denoiser, checkpoints=options.checkpoints, select=options.select)


def load_data(options: argparse.Namespace, denoiser: Denoiser) -> ImageFolder:
    """Return the training images in the size that the model takes."""
    return ImageFolder(options.data, size=denoiser.sample_size, channels=denoiser.in_channels or 3)


def record_images(options: argparse.Namespace, denoiser: Denoiser) -> Trajectory:
    """Generate what the arguments of ``add_recording`` ask for."""
    given = {name: getattr(options, option) for name, option in _RECORDING.items()}
    given = {name: value for name, value in given.items() if value is not None}
    return record(denoiser, seed=options.seed, progress=not options.quiet, **given)


def load_trajectory(options: argparse.Namespace) -> Trajectory:
    """Return the generation that ``--trajectory`` names.

    Raises:
        ValueError: If it is also said what to generate.
        FileNotFoundError: If there is none.
    """
    excess = [option for option in _RECORDING.values() if getattr(options, option, None) is not None]
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


def add_completion_steps(parser: argparse.ArgumentParser) -> None:
    """Add how completions are sampled."""
    text = "steps of the completions' sampler, which must visit the steps asked for (default: the trajectory's)"
    parser.add_argument("--completion-steps", type=int, help=text)


def add_damping(parser: argparse.ArgumentParser) -> None:
    """Declare how much the Gram matrix is damped."""
    text = f'multiple of the mean eigenvalue (default {DEFAULT_DAMPING:g}), or "auto"'
    parser.add_argument("--damping", default=f"{DEFAULT_DAMPING:g}", help=text)


def parse_damping(text: str) -> float | Literal["auto"]:
    """Return the damping as a number, or ``"auto"``.

    Raises:
        ValueError: If it is neither.
    """
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'damping must be "auto" or a number >= 0, got {text!r}') from None


def parse_region(words: list[str] | None) -> Any:
    """Return a region: four numbers are a box, one word is the path of a mask.

    Raises:
        ValueError: If it is neither.
    """
    if words is None or len(words) == 1:
        return words and words[0]
    try:
        top, left, bottom, right = map(int, words)
    except ValueError:
        raise ValueError(
            f"region must be a box TOP LEFT BOTTOM RIGHT or the path of a mask image, got {' '.join(words)}"
        ) from None
    return top, left, bottom, right
