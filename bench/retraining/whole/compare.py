"""Score every contender against the table of retrained losses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.retraining.library import DEFAULT
from bench.retraining.whole.contenders import DAMPINGS, Contender, contenders, library_scores, measure, scores_at
from bench.retraining.whole.truth import QUERY_KINDS, Setting, Truth
from journey.evaluate.lds import CEILING, LDSTable, lds, lds_per_query, predict_losses, significant

OURS, MODEL_FREE = DEFAULT, "optimal denoiser (NDA)"
# What is compared where time is short.
SHORT = (
    DEFAULT,
    f"{DEFAULT}, linear scores",
    f"{DEFAULT}, of three steps",
    "training loss",
    "plain gradients",
    "das",
    "trak",
    "dtrak",
    "kfac_influence",
    "kfac_influence, signed squares",
    "pixels, cosine",
    MODEL_FREE,
)


def compare(setting: Setting, truth: Truth, *, short: bool = False) -> dict[str, Any]:
    """Return the document of the comparison: one table per kind of query.

    Args:
        setting: The tier.
        truth: What really happens.
        short: Compare ``SHORT`` alone.

    Returns:
        The document, see ``table``.
    """
    scores, notes = {}, {}
    for contender in contenders():
        if short and contender.name not in SHORT:
            continue
        print(f"{contender.name} ...", flush=True)
        scores[contender.name], notes[contender.name] = _scores(setting, truth, contender)
    # What the gradients know and what the images alone tell: each query's scores at one scale, added.
    both = f"{OURS} + optimal denoiser"
    scores[both] = _standardized(scores[OURS]) + _standardized(scores[MODEL_FREE])
    notes[both] = {key: notes[OURS][key] for key in ("seconds", "bytes", "damping")}
    notes[both]["seconds"] += notes[MODEL_FREE]["seconds"]
    subsets, losses = truth.reported()
    rows: dict[str, dict[str, Any]] = {name: dict(note) for name, note in notes.items()}
    document: dict[str, Any] = {"tier": setting.tier.name, "num_subsets": len(subsets), "rows": rows, "ceiling": {}}
    for kind, part in zip(QUERY_KINDS, _parts(setting), strict=True):
        # The whole range of timesteps: the mean over its quarters.
        some, responses = {name: values[part] for name, values in scores.items()}, losses[:, :, part].mean(-1)
        table = lds(some, responses, subsets, num_bootstrap=400)
        for name, row in table.rows.items():
            entry = rows.setdefault(name, {})
            entry[kind] = {"lds": list(row.lds), "head": row.head, "tail": row.tail, "behind": _behind(table, name)}
        left = {name: significant(values) for name, values in some.items()}
        snr = lds({name: kept for name, (kept, _) in left.items()}, responses, subsets, num_bootstrap=400)
        for name, (_, share) in left.items():
            rows[name][kind]["snr"] = {"lds": list(snr.rows[name].lds), "share": share}
        document["ceiling"][kind] = None if table.ceiling is None else list(table.ceiling)
    return document


def _behind(table: LDSTable, name: str) -> list[float] | None:
    """By how much ours exceeds a method, on the same resamples."""
    return None if name == OURS else list(table.difference(OURS, name))


def _scores(setting: Setting, truth: Truth, contender: Contender) -> tuple[Tensor, dict[str, Any]]:
    if contender.library is not None:
        values, seconds = library_scores(setting, contender)
        return values, {"seconds": seconds, "bytes": contender.library.stored, "damping": contender.damping}
    if contender.baseline is not None:
        begin = time.process_time()
        values = contender.baseline(setting)
        return values, {"seconds": time.process_time() - begin, "bytes": 0, "damping": None}
    assert contender.method is not None
    measured, seconds = measure(setting, contender)
    can_tune = contender.damped and len(truth.tuning()[0]) > 0
    damping = _tuned(setting, truth, contender, measured) if can_tune else None
    values, used = scores_at(setting, contender, measured, damping)
    return values, {"seconds": seconds, "bytes": 4 * sum(m.train.shape[1] for m in measured), "damping": used}


def _tuned(setting: Setting, truth: Truth, contender: Contender, measured: list[Any]) -> float:
    """The damping of highest LDS on the halves for tuning, mean over all queries."""
    subsets, losses = truth.tuning()

    def quality(damping: float) -> float:
        values, _ = scores_at(setting, contender, measured, damping)
        return lds_per_query(predict_losses(values, subsets), losses.mean(-1)).mean().item()

    return max(DAMPINGS, key=quality)


def _standardized(scores: Tensor) -> Tensor:
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)


def _parts(setting: Setting) -> list[slice]:
    count = setting.tier.num_queries
    return [slice(kind * count, (kind + 1) * count) for kind in range(len(QUERY_KINDS))]


def table(document: dict[str, Any]) -> str:
    """Render a document as Markdown: sorted by LDS on held-out queries, controls and ceiling last."""
    kinds = [kind for kind in QUERY_KINDS if kind in document["ceiling"]]
    names = sorted(document["rows"], key=lambda name: -document["rows"][name][kinds[1]]["lds"][0])
    # Documents of before the SNR-LDS have none.
    with_snr = any("snr" in document["rows"][name][kinds[1]] for name in names)
    head = ["method", *(f"LDS, {kind} queries" for kind in kinds)]
    head += [f"SNR-LDS, {kinds[1]} queries; share of scores left"] if with_snr else []
    head += [f"{OURS} exceeds it by, {kinds[1]}", "seconds", "kB per image", "damping"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name in names:
        row = document["rows"][name]
        cells = [name, *(_interval(row[kind]["lds"]) for kind in kinds)]
        cells += [_significant(row[kinds[1]].get("snr"))] if with_snr else []
        cells.append("" if row[kinds[1]]["behind"] is None else _interval(row[kinds[1]]["behind"]))
        cells += [f"{row['seconds']:.0f}", kilobytes(row["bytes"])] if "seconds" in row else ["", ""]
        cells.append("" if row.get("damping") in (None, float("inf")) else f"{row['damping']:g}")
        lines.append(f"| {' | '.join(cells)} |")
    if document["ceiling"][kinds[0]] is not None:
        cells = [
            CEILING,
            *(_interval(document["ceiling"][kind]) for kind in kinds),
            *[""] * (len(head) - 1 - len(kinds)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kilobytes(num_bytes: int) -> str:
    """Render bytes as kB, with a digit behind the point where that is not zero."""
    return f"{num_bytes / 1000:.1f}".removesuffix(".0")


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw LDS against cost: seconds to the right, held-out LDS upwards."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6.5), layout="constrained")
    kind = QUERY_KINDS[1]
    shown = sorted(
        (row[kind]["lds"], max(row["seconds"], 0.1), name) for name, row in document["rows"].items() if "seconds" in row
    )
    for index, ((value, low, high), seconds, name) in enumerate(shown):
        color = f"C{index % 10}"
        axes.errorbar(seconds, value, [[value - low], [high - value]], fmt="o", capsize=2, markersize=4, color=color)
        # Names stand in a column on the right, in the order of their values, so that they never overlap.
        axes.annotate(
            name,
            (seconds, value),
            xytext=(1.08, (index + 0.5) / len(shown)),
            textcoords="axes fraction",
            fontsize=8,
            color=color,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.4, "relpos": (0, 0.5)},
        )
    if document["ceiling"][kind] is not None:
        axes.axhline(document["ceiling"][kind][0], color="grey", linestyle="--", linewidth=1)
        axes.text(0.1, document["ceiling"][kind][0], CEILING, fontsize=8, va="bottom")
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set(xscale="log", xlabel="seconds to measure all images and queries", ylabel=f"LDS, {kind} queries")
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def _significant(snr: dict[str, Any] | None) -> str:
    return "" if snr is None else f"{_interval(snr['lds'])}; {snr['share']:.1%}"


def _interval(values: list[float]) -> str:
    value, low, high = values
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
