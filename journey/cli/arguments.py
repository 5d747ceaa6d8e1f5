"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from journey.curvature.gram import DEFAULT_DAMPING
from journey.files.paths import Location, as_path
from journey.measure.draws import GridDraws, StratifiedDraws, UniformDraws
from journey.measure.left_out import LeftOutLoss
from journey.measure.measurements import MeanOutput, Measurement, SquaredNorm, TrainingLoss
from journey.projectors.base import Projector
from journey.projectors.random import CountSketch, Gaussian, Rademacher
from journey.projectors.scaled import Scaled
from journey.store.rows import RowFormat

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

# Arguments of a command by those of ``journey.record``.
RECORDING = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "class_labels": "class_label",
    "guidance_scale": "guidance",
    "num_images": "num_images",
    "num_inference_steps": "num_inference_steps",
    "size": "size",
}

MEASUREMENTS: dict[str, type[Measurement]] = {
    "left-out-loss": LeftOutLoss,
    "loss": TrainingLoss,
    "squared-norm": SquaredNorm,
    "mean-output": MeanOutput,
}
PROJECTORS: dict[str, Callable[..., Projector]] = {
    "scaled": lambda proj_dim, seed: Scaled(CountSketch(proj_dim, seed=seed)),
    "count-sketch": CountSketch,
    "rademacher": Rademacher,
    "gaussian": Gaussian,
}

DRAWS: dict[str, type[StratifiedDraws] | type[UniformDraws] | type[GridDraws]] = {
    "stratified": StratifiedDraws,
    "uniform": UniformDraws,
    "grid": GridDraws,
}
_IMAGES = (
    'folder of training images; captions ("text") and labels ("label") in its metadata.jsonl or metadata.csv, else '
    "captions in .txt beside the images, labels by the names of folders"
)


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
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the model's parts: each as it was saved (default), or one for all",
    )
    parser.add_argument("--variant", metavar="NAME", help="which of the model's weight files, such as fp16")
    text = "LoRA weights to load; then they alone are measured. Two for a model of two networks, high noise first"
    parser.add_argument("--lora", nargs="+", metavar="PATH", help=text)
    parser.add_argument(
        "--latents",
        choices=("mean", "sample"),
        default="mean",
        help="of the VAE's posterior: its mean (default), or one sample for each image",
    )
    parser.add_argument(
        "--video-size",
        type=int,
        nargs=3,
        metavar=("FRAMES", "HEIGHT", "WIDTH"),
        help="of a video model: what files are read in and videos are made in (default: the pipeline's)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--seed", type=int, default=0, help="names everything random (default 0)")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the training images."""
    parser.add_argument("--data", type=Path, required=True, help=_IMAGES)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the training images, which may also lie in files that are read as they come."""
    text = f"{_IMAGES}; or files, *.parquet or *.tar"
    parser.add_argument("--data", nargs="+", action=_OneOrMore, metavar="PATH", required=True, help=text)


class _OneOrMore(argparse.Action):
    """One value as it is, several as a list."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def add_on_error(parser: argparse.ArgumentParser) -> None:
    """Add what becomes of images that cannot be read."""
    parser.add_argument(
        "--on-error", choices=("error", "skip"), default="error", help="what becomes of images that cannot be read"
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
        help='weights to measure under, averaged in the scores: files, folders, "run/step-*" (default: the model\'s)',
    )


def place(text: str) -> Location:
    """A folder, or an address on an object store.

    Returns:
        The place.

    Raises:
        ArgumentTypeError: If it is neither.
    """
    try:
        return as_path(text)
    except (ValueError, ImportError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def folder(text: str) -> Path:
    """A folder of this machine.

    Returns:
        The folder.

    Raises:
        ArgumentTypeError: If it is an address on an object store.
    """
    found = place(text)
    if not isinstance(found, Path):
        raise argparse.ArgumentTypeError(f"must be a folder of this machine, got {text}")
    return found


def add_features(parser: argparse.ArgumentParser) -> None:
    """Add the stored features, with what must be as it was when they were made."""
    parser.add_argument("--features", type=place, required=True, help="folder that featurize wrote, or s3://...")
    parser.add_argument(
        "--fit", type=place, help="folder that fit wrote, as given to featurize (default: in the store)"
    )
    add_measured(parser)


def add_recording(parser: argparse.ArgumentParser) -> None:
    """Add what is generated; ``None`` stands for the default of ``journey.record``."""
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="what a text model is to show, one or several")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    parser.add_argument("--class-label", type=int, nargs="+", metavar="N", help="of a class-conditional model")
    parser.add_argument("--guidance", type=float, help="strength of guidance (default: that of the pipeline)")
    parser.add_argument("--num-images", type=int, help="images to generate, of each prompt (default 1)")
    parser.add_argument("--num-inference-steps", type=int, help="steps of the sampler (default 50)")
    text = "height and width in pixels, of videos frames before them (default: the model's)"
    parser.add_argument("--size", type=int, nargs="+", metavar="N", help=text)


def add_trajectory(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add a recorded generation."""
    parser.add_argument(
        "--trajectory", type=Path, required=required, metavar="PATH", help="what record or score wrote: folder or file"
    )


def add_completion_steps(parser: argparse.ArgumentParser) -> None:
    """Add how completions are sampled."""
    text = "steps of the completions' sampler, which must visit the steps asked for (default: the trajectory's)"
    parser.add_argument("--completion-steps", type=int, help=text)


def add_damping(parser: argparse.ArgumentParser) -> None:
    """Declare how much the Gram matrix is damped."""
    text = f"ridge in mean diagonals of the Gram matrix (default {DEFAULT_DAMPING:g})"
    parser.add_argument("--damping", type=float, default=DEFAULT_DAMPING, help=text)


def add_projection(parser: argparse.ArgumentParser) -> None:
    """Declare what is differentiated, and where gradients go."""
    parser.add_argument(
        "--measurement", choices=MEASUREMENTS, default="left-out-loss", help="what is differentiated (default: this)"
    )
    parser.add_argument(
        "--projector",
        choices=PROJECTORS,
        default="scaled",
        help="how gradients are projected (default: one scale per parameter, then count-sketch)",
    )
    parser.add_argument("--proj-dim", type=int, default=4096, help="features per image (default 4096)")


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """Declare how images are measured and kept."""
    parser.add_argument(
        "--batch-size", type=_batch_size, help="images per batch (default: 64 draws, on CUDA 256, or fewer), or auto"
    )
    parser.add_argument("--memory", type=float, help="GiB that a batch may take with --batch-size auto (default: half)")
    parser.add_argument("--shard-size", type=int, help="images per file (default: a 128th, 16 to 4,096)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images ahead (default 0)")
    add_on_error(parser)
    add_projection(parser)
    parser.add_argument("--draws", choices=DRAWS, default="stratified", help="how timesteps are chosen")
    parser.add_argument("--num-draws", type=int, help="timesteps per image and bin (default 20, with several bins 2)")
    parser.add_argument(
        "--bins", type=int, default=1, help="ranges of timesteps whose features are kept apart (default 1)"
    )
    parser.add_argument("--row", choices=get_args(RowFormat), default="int8", help="how features are kept")
    parser.add_argument("--fit", type=place, help="folder that fit wrote (default: made inside the store)")


def _batch_size(text: str) -> int | Literal["auto"]:
    try:
        return "auto" if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number of images or auto, got {text!r}") from None


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
