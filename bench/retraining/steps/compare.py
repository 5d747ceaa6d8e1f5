"""Score every contender against the table of responses at single steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.retraining.library import DEFAULT, WHOLE_IMAGE
from bench.retraining.steps.contenders import PLAIN, PUBLISHED, TRAINING_LOSS, measured_scores, step_contenders
from bench.retraining.steps.truth import STEP_KINDS, StepTruth
from bench.retraining.whole.compare import kilobytes
from bench.retraining.whole.truth import Setting
from journey.evaluate.lds import CEILING, LDSTable, lds, lds_per_query, predict_losses, significant
from journey.evaluate.subsets import Subsets

# Rows of the short table and curves of the plot.
SHOWN = (
    DEFAULT,
    TRAINING_LOSS,
    PLAIN,
    PUBLISHED,
    "optimal denoiser at the latent",
    "pixels of x0_hat, cosine",
    WHOLE_IMAGE,
)


def compare_steps(setting: Setting, truth: StepTruth, *, short: bool = False) -> dict[str, Any]:
    """Return the document of the comparison: for every contender and kind of query the LDS of each step.

    Args:
        setting: The tier.
        truth: What really happens.
        short: Compare what the short table shows alone.

    Returns:
        The document, see ``step_table``.
    """
    scores, rows = {}, {}
    for contender in step_contenders():
        if short and contender.name not in SHOWN:
            continue
        print(f"{contender.name} ...", flush=True)
        scores[contender.name] = measured_scores(setting, truth.trajectory, contender)
        rows[contender.name] = {
            "draws": 0 if contender.draws is None else contender.draws.bins * contender.draws.num_draws,
            "bytes": contender.stored,
            "tuning": tuning_lds(truth, scores[contender.name]),
        }
    document: dict[str, Any] = {"steps": truth.trajectory.timesteps.tolist(), "rows": rows, "ceiling": {}}
    subsets, losses = truth.reported()
    for kind in STEP_KINDS:
        part = truth.of_kind(kind)
        add_kind(document, kind, {name: values[part] for name, values in scores.items()}, losses[:, :, part], subsets)
    return document


def tuning_lds(truth: StepTruth, scores: Tensor) -> dict[str, float]:
    """Return the mean LDS over steps and queries of a kind on the halves for tuning, if there are."""
    subsets, losses = truth.tuning()
    if not len(subsets):
        return {}
    per_step = [
        lds_per_query(predict_losses(scores[:, i], subsets), losses[..., i])
        for i in range(len(truth.trajectory.timesteps))
    ]
    return {kind: torch.stack(per_step)[:, truth.of_kind(kind)].mean().item() for kind in STEP_KINDS}


def add_kind(
    document: dict[str, Any], key: str, scores: dict[str, Tensor], responses: Tensor, subsets: Subsets
) -> None:
    """Add the LDS of every step, and of the mean over steps, with the default's lead over it."""
    tables = _tables(scores, responses, subsets)
    for name in tables[0].rows:
        # One seed: every step resamples the same queries, subsets and seeds, so means over steps are resampled too.
        mean, resampled = _over_steps(tables, name)
        best, resampled_best = _over_steps(tables, DEFAULT)
        document["rows"].setdefault(name, {})[key] = {
            "steps": [list(table.rows[name].lds) for table in tables],
            "mean": _interval(mean, resampled),
            # By how much the default exceeds it, on the same resamples.
            "behind": _interval(best - mean, resampled_best - resampled),
        }
    left = {name: [significant(values[:, i]) for i in range(len(tables))] for name, values in scores.items()}
    kept = {name: torch.stack([values for values, _ in steps], 1) for name, steps in left.items()}
    snr = _tables(kept, responses, subsets)
    for name, steps in left.items():
        share = sum(share for _, share in steps) / len(steps)
        document["rows"][name][key]["snr"] = {"mean": _interval(*_over_steps(snr, name)), "share": share}
    ceilings = [table.ceiling for table in tables]
    document["ceiling"][key] = [None if ceiling is None else list(ceiling) for ceiling in ceilings]


def _tables(scores: dict[str, Tensor], responses: Tensor, subsets: Subsets) -> list[LDSTable]:
    """The LDS of every step."""
    return [
        lds({name: values[:, i] for name, values in scores.items()}, responses[..., i], subsets, num_bootstrap=400)
        for i in range(responses.shape[-1])
    ]


def _over_steps(tables: list[LDSTable], name: str) -> tuple[float, Tensor]:
    """The mean over steps of a row's LDS, and that of every resample. [num_bootstrap]"""
    row = list(tables[0].rows).index(name)
    value = sum(table.rows[name].lds.value for table in tables) / len(tables)
    return value, torch.stack([table.resampled[row] for table in tables]).mean(0)


def _interval(value: float, resampled: Tensor) -> list[float]:
    low, high = (torch.quantile(resampled, q).item() - resampled.mean().item() for q in (0.025, 0.975))
    return [value, value + low, value + high]


def step_table(document: dict[str, Any], shown: Sequence[str] | None = None) -> str:
    """Render the generated queries' LDS of each step as Markdown, best mean first, ceiling last.

    Args:
        document: From ``compare_steps``.
        shown: Rows; all by default.

    Returns:
        The table.
    """
    other, key = STEP_KINDS
    names = sorted(shown or document["rows"], key=lambda name: -document["rows"][name][key]["mean"][0])
    # Documents of before the SNR-LDS have none.
    with_snr = any("snr" in document["rows"][name][key] for name in names)
    head = ["method", *map(str, document["steps"]), "mean", f"mean, {other}"]
    head += ["SNR-LDS, mean; share of scores left"] if with_snr else []
    head += ["draws per image", "kB per image"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name in names:
        row = document["rows"][name]
        cells = [name, *(f"{step[0]:.2f}" for step in row[key]["steps"])]
        cells += ["{:.2f} [{:.2f}, {:.2f}]".format(*row[k]["mean"]) for k in (key, other)]
        snr = row[key].get("snr")
        if with_snr:
            cells.append("" if snr is None else "{:.2f} [{:.2f}, {:.2f}]; {:.1%}".format(*snr["mean"], snr["share"]))
        cells += [str(row["draws"]), kilobytes(row["bytes"])] if "draws" in row else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    ceilings = [document["ceiling"][k] for k in (key, other)]
    if None not in ceilings[0]:
        cells = [CEILING, *(f"{step[0]:.2f}" for step in ceilings[0])]
        cells += [f"{sum(step[0] for step in ceiling) / len(ceiling):.2f}" for ceiling in ceilings]
        lines.append(f"| {' | '.join(cells)} | | |{' |' * with_snr}")
    return "\n".join(lines)


def plot_steps(document: dict[str, Any], path: Path) -> None:
    """Draw LDS against the step, from noise on the left to the image on the right, with the ceiling as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    key, steps = STEP_KINDS[1], document["steps"]
    if None not in document["ceiling"][key]:
        _, low, high = zip(*document["ceiling"][key], strict=True)
        axes.fill_between(steps, low, high, color="0.85", label="ceiling: retraining itself", linewidth=0)
    for index, name in enumerate(SHOWN):
        value, low, high = zip(*document["rows"][name][key]["steps"], strict=True)
        axes.plot(steps, value, marker="o", markersize=4, color=f"C{index}", label=name)
        if name == DEFAULT:
            axes.fill_between(steps, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.invert_xaxis()
    axes.set(xlabel="step of the generation (timestep)", ylabel="LDS of generated images", xticks=steps)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
