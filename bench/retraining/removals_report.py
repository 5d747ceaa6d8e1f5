"""The results of ``bench.retraining.removals`` as tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from journey.evaluate.counterfactual import Counterfactual
from journey.evaluate.removal import RANDOM, RESEED

AT_STEP, NEAREST = ", at the step", "pixels, cosine"
WHOLE_EFFECTS = {"pixels": "pixel distance", "embedding": "embedding distance", "loss": "rise of the query's loss"}
STEP_EFFECTS = {
    "prediction": "change of the predicted image",
    "generation": "change of the generation, swapped at the step and the next two",
    "loss": "rise of the predicted image's loss at the step",
}
_SCALE = {"embedding": 1000, "loss": 1000}  # so that three decimals are enough


def tables(document: dict[str, Any], *, short: bool = False) -> str:
    """Render a document as Markdown.

    Args:
        document: What ``compare`` returned.
        short: The main effects alone, for a README.

    Returns:
        One table for every number of removed images, and one for every effect at steps.
    """
    parts = []
    for num_removed, effects in document["whole"].items():
        shown = ("pixels", "loss") if short else WHOLE_EFFECTS
        results = {name: _result(effects[name]) for name in shown}
        parts.append(_whole(document, num_removed, results))
        if NEAREST in results["loss"].runs:
            parts.append(_beyond_nearest(num_removed, results))
    if document["step"]:
        parts += [_steps(document, effect) for effect in (("prediction",) if short else STEP_EFFECTS)]
    return "\n\n".join(parts)


def _whole(document: dict[str, Any], num_removed: str, results: dict[str, Counterfactual]) -> str:
    first = next(iter(results.values()))
    header = ["removed"]
    for effect in results:
        title = WHOLE_EFFECTS[effect] + _unit(effect)
        header += [title, "more than random", "more than another seed"]
    lines = [_cells(header), _cells(["---"] * len(header))]
    for name in _ordered(first):
        cells = [name]
        for effect, result in results.items():
            scale = _SCALE.get(effect, 1)
            cells.append(_text(result.mean(name), scale))
            cells += [
                "" if name in (control, RANDOM, RESEED) else _more(result, name, control, scale)
                for control in (RANDOM, RESEED)
            ]
        lines.append(_cells(cells))
    return _titled(f"Whole trajectory: {_sizes(document, num_removed, first)}.", lines)


def _beyond_nearest(num_removed: str, results: dict[str, Counterfactual]) -> str:
    """Every method against the nearest images by pixels, query by query."""
    header = ["removed", *(WHOLE_EFFECTS[effect] + _unit(effect) for effect in results)]
    lines = [_cells(header), _cells(["---"] * len(header))]
    for name in _ordered(results["loss"]):
        if name not in (NEAREST, RANDOM, RESEED):
            gaps = [_more(result, name, NEAREST, _SCALE.get(effect, 1)) for effect, result in results.items()]
            lines.append(_cells([name, *gaps]))
    return _titled(f"More than the nearest by pixels, {num_removed} removed:", lines)


def _steps(document: dict[str, Any], effect: str) -> str:
    results = {step: _result(effects[effect]) for step, effects in document["step"].items()}
    scale = _SCALE.get(effect, 1)
    header = ["removed", *(f"step {step}" for step in results)]
    lines = [_cells(header), _cells(["---"] * len(header))]
    first = next(iter(results.values()))
    for name in _ordered(first):
        lines.append(_cells([name, *(_text(result.mean(name), scale) for result in results.values())]))
    for name in first.runs:
        if name.endswith(AT_STEP):
            whole = name.removesuffix(AT_STEP)
            gaps = [_more(result, name, whole, scale) for result in results.values()]
            lines.append(_cells([f"*{whole}: at the step minus whole*", *gaps]))
    title = f"At a step, {STEP_EFFECTS[effect]}{_unit(effect)}: {_sizes(document, document['removed_at_step'], first)}."
    return _titled(title, lines)


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw the main effects: every method's mean with its interval, and a mark for every query."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    number, whole = next(iter(document["whole"].items()))
    panels = [(f"{number} images removed", WHOLE_EFFECTS[effect], whole[effect]) for effect in ("pixels", "loss")]
    for step, effects in document["step"].items():
        panels.append((f"at step {step}", STEP_EFFECTS["prediction"], effects["prediction"]))
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    size = (5 * columns, 3.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, label, runs) in zip(axes.flat, panels, strict=False):
        result = _result(runs)
        names = _ordered(result)[::-1]
        for row, name in enumerate(names):
            value, low, high = result.mean(name)
            color = "grey" if name in (RANDOM, RESEED) else "C1" if name.endswith(AT_STEP) else "C0"
            axis.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="o", capsize=3, color=color)
            axis.plot(result.moved[name], torch.full_like(result.moved[name], row), "|", color=color, alpha=0.4)
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel=label, title=title)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def _result(runs: dict[str, list[list[float]]]) -> Counterfactual:
    return Counterfactual({name: torch.tensor(rows) for name, rows in runs.items()})


def _ordered(result: Counterfactual) -> list[str]:
    """Methods by their mean, then the controls."""
    methods = [name for name in result.runs if name not in (RANDOM, RESEED)]
    return [*sorted(methods, key=lambda name: -result.mean(name).value), RANDOM, RESEED]


def _more(result: Counterfactual, name: str, control: str, scale: float) -> str:
    """The excess, and for how many of the queries it is positive."""
    return f"{_text(result.excess(name, control), scale)} ({100 * result.share(name, control):.0f} %)"


def _text(interval: tuple[float, float, float], scale: float) -> str:
    value, low, high = (scale * x for x in interval)
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _sizes(document: dict[str, Any], num_removed: int | str, result: Counterfactual) -> str:
    num_queries = len(result.moved[RANDOM])
    return f"{num_removed} of {document['num_train']} images removed, {num_queries} queries"


def _titled(title: str, lines: list[str]) -> str:
    return "\n".join([title, "", *lines])


def _unit(effect: str) -> str:
    return " (thousandths)" if _SCALE.get(effect) == 1000 else ""


def _cells(entries: list[str]) -> str:
    return f"| {' | '.join(entries)} |"
