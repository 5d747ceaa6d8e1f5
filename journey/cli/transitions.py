"""``journey transitions``: in which steps of a generation a feature is decided."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from journey.cli.arguments import Commands, add_command, add_completion_steps, add_model, add_running, add_trajectory
from journey.cli.inputs import load_denoiser, load_function, load_trajectory
from journey.files.publish import publish
from journey.files.tensors import check_fields, read_json
from journey.generation.transitions import Transition, transitions
from journey.report.story import Transitions

INDEX = "transitions.json"
_FIELDS = {"query": int, "name": str, "file": str}
EXAMPLES = """
journey transitions --model ./ddpm-cifar10 --trajectory generated --classifier my_classifiers:is_ship
journey transitions --model ./stable-diffusion --trajectory apple --classifier my_classifiers:is_red --name "red"
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "find the steps in which a feature of a generated image is decided; score shows them on its page"
    parser = add_command(commands, "transitions", text, EXAMPLES, _run)
    add_model(parser)
    add_trajectory(parser)
    parser.add_argument(
        "--classifier",
        required=True,
        metavar="MODULE:FUNCTION",
        help="called with images in [-1, 1], float32 [n, C, H, W]; returns n bools or probabilities",
    )
    parser.add_argument("--name", help="what the feature is called (default: the function's name)")
    parser.add_argument("--query", type=int, default=0, help="which generated image (default 0)")
    parser.add_argument(
        "--steps", type=int, nargs="+", metavar="T", help="timesteps to begin with (default: 6, evenly spread)"
    )
    parser.add_argument("--completions", type=int, default=16, help="images completed from each step (default 16)")
    parser.add_argument("--refine", type=int, default=4, help="further steps, where the rise is largest (default 4)")
    add_completion_steps(parser)
    parser.add_argument("--confidence", type=float, default=0.95, help="of all bands (default 0.95)")
    parser.add_argument("--batch-size", type=int, default=64, help="completions at once (default 64)")
    add_running(parser)


def _run(options: argparse.Namespace) -> None:
    classifier = load_function(options.classifier)
    trajectory = load_trajectory(options)
    found = transitions(
        load_denoiser(options),
        trajectory,
        classifier,
        query=options.query,
        steps=options.steps,
        completions=options.completions,
        refine=options.refine,
        num_inference_steps=options.completion_steps,
        seed=options.seed,
        confidence=options.confidence,
        batch_size=options.batch_size,
        progress=not options.quiet,
    )
    name = options.name or options.classifier.partition(":")[2]
    folder = options.trajectory if options.trajectory.is_dir() else options.trajectory.parent
    save_transition(folder, options.query, name, found)
    print(describe(name, found))
    print(f"Kept in {folder}: journey score --trajectory {folder} ... shows it on the page.")


def save_transition(folder: Path, query: int, name: str, found: Transition) -> None:
    """Keep a transition beside its trajectory, in place of one of the same query and name."""
    known = _index(folder)
    same = [entry for entry in known if (entry["query"], entry["name"]) == (query, name)]
    entry = same[0] if same else {"query": query, "name": name, "file": f"feature-{len(known)}.safetensors"}
    found.save(folder / str(entry["file"]))
    if not same:
        publish(folder / INDEX, [json.dumps([*known, entry], indent=1).encode() + b"\n"])


def load_transitions(path: Path) -> Transitions:
    """Return the transitions kept beside a trajectory, by query and name.

    Args:
        path: The trajectory's folder or file.

    Returns:
        The transitions.

    Raises:
        ValueError: If a file of another folder is named, or holds something else.
    """
    folder = path if path.is_dir() else path.parent
    found = {}
    for entry in _index(folder):
        if Path(str(entry["file"])).name != entry["file"]:
            raise ValueError(f"{folder / INDEX} must name files of the same folder, got {entry['file']!r}")
        found[int(entry["query"]), str(entry["name"])] = Transition.load(folder / str(entry["file"]))
    return found


def describe(name: str, found: Transition) -> str:
    """Return the curve with its bands, and the interval in words."""
    lower, upper = found.band
    lines = [f'"{name}" among {found.outcomes.shape[1]} completions from each step:', "  step  likelihood  band"]
    rows = zip(found.timesteps.tolist(), found.likelihood.tolist(), lower.tolist(), upper.tolist(), strict=True)
    lines += [f"  {t:>4}  {p:>10.0%}  {low:.0%} to {high:.0%}" for t, p, low, high in rows]
    if not found.found:
        return "\n".join([*lines, "No transition: the bands of the first and the last step overlap."])
    first, end = found.interval
    (low0, low1, low), (high0, high1, high) = found.uncertainty.tolist()
    return "\n".join(
        [
            *lines,
            f"Decided in timesteps {first} to {end - 1} (bounds {low0:.0f} to {high0:.0f} and {low1 - 1:.0f} to "
            f"{high1 - 1:.0f}), half of it at {found.midpoint:.0f} ({low:.0f} to {high:.0f}).",
            f"Attribute it: journey score --interval {first} {end} --trajectory ...",
        ]
    )


def _index(folder: Path) -> list[dict[str, str | int]]:
    path = folder / INDEX
    if not path.exists():
        return []
    found = read_json(path)
    if not isinstance(found, list):
        raise ValueError(f"{path} is damaged: it must be a list of transitions, got {found!r:.60}")
    return [check_fields(entry, _FIELDS, f"a transition in {path}") for entry in found]
