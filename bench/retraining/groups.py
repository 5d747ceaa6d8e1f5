"""What do sums over groups predict of retraining? ``python -m bench.retraining.groups --tier laptop``.

The groups are the ten digits. The losses of models retrained on random halves are those of ``bench.retraining``: a half
keeps about half of every group. For each half the scores of what it keeps are added up, and held against the loss of
the query: of all images with their own scores, of all images with the mean of their group, of the images of one group
alone. Nothing is retrained but the attributed model. Results are ``groups-NAME.json``, ``.md`` and
``.png``, a picture of one generated image.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

import journey
from bench.retraining.arguments import make_parser, write_into, write_results
from bench.retraining.library import features_of
from bench.retraining.tiers import TIERS, Tier
from bench.retraining.whole.truth import QUERY_KINDS, Truth, open_setting, read_truth
from journey.demo.digits import knn_labels, load_digits_dataset
from journey.evaluate.lds import CEILING, lds
from journey.report.groups import write_groups_png
from journey.scores.groups import Groups
from journey.scores.scores import Scores

IMAGES, MEANS = "every image", "every image, by the mean of its group"
OWN, STRONGEST = "images of the query's digit alone", "images of the strongest group alone"
COUNT = "control: one for each image of the query's digit"
_SIZES = {"digits8": 8, "digits16": 16}  # of the tiers whose labels are known


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Instead of the command line's.

    Returns:
        Exit status.
    """
    parser = make_parser("bench.retraining.groups", __doc__)
    options = parser.parse_args(arguments)
    tier = TIERS[options.tier]
    if tier.name not in _SIZES:
        parser.error(f"--tier must be one of the digits, whose labels are known, got {options.tier}")
    torch.set_num_threads(1)
    setting = open_setting(tier, options.data, options.work)
    features, _ = features_of(setting)
    scores = journey.score(features, images=setting.pictures, progress=False)
    truth = read_truth(options.out / f"lds-{tier.name}.json")
    labels, shown = labels_of(tier, setting.asked.x0)
    document = compare_groups(scores, labels, shown, truth)
    write_results(options, f"groups-{tier.name}", document, table(document))
    write_into(options, table(document), "groups")
    query = QUERY_KINDS.index("generated") * tier.num_queries
    write_groups_png(
        options.pages / f"groups-{tier.name}.png",
        digits(scores, labels),
        query=query,
        title=f"Which digits steered this generated {int(shown[query])}?",
    )
    return 0


def labels_of(tier: Tier, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Return the digits of the training images, and those that the queries show. [num_train], [num_queries]"""
    dataset = load_digits_dataset(_SIZES[tier.name])
    return dataset.labels[tier.order(len(dataset))[: tier.num_train]], knn_labels(queries, dataset)


def compare_groups(scores: Scores, labels: Tensor, shown: Tensor, truth: Truth) -> dict[str, Any]:
    """Return the LDS of sums over groups, for each kind of query.

    Args:
        scores: Of whole images, linear. [num_queries, 1, num_train]
        labels: The group of each training image, int64. [num_train]
        shown: The group of each query. [num_queries]
        truth: What really happens.

    Returns:
        The document, see ``table``.
    """
    methods = group_scores(scores, labels, shown)
    subsets, losses = truth.reported()
    rows: dict[str, dict[str, Any]] = {name: {} for name in methods}
    document: dict[str, Any] = {"rows": rows, "ceiling": {}, "sums": _sums(scores, labels, shown)}
    count = len(shown) // len(QUERY_KINDS)
    for number, kind in enumerate(QUERY_KINDS):
        part = slice(number * count, (number + 1) * count)
        found = lds(
            {name: values[part] for name, values in methods.items()},
            losses[:, :, part].mean(-1),
            subsets,
            num_bootstrap=400,
        )
        for name in methods:
            rows[name][kind] = list(found.rows[name].lds)
        document["ceiling"][kind] = None if found.ceiling is None else list(found.ceiling)
    return document


def digits(scores: Scores, labels: Tensor) -> Groups:
    """Return the sums over the images of each digit."""
    ids: Any = scores.train_ids
    members = {g: (labels == g).nonzero().flatten().tolist() for g in labels.unique().tolist()}
    return scores.groups({_name(g): [ids[i] for i in columns] for g, columns in members.items()})


def group_scores(scores: Scores, labels: Tensor, shown: Tensor) -> dict[str, Tensor]:
    """Return the scores of each image under every way to use groups, float32. Each [num_queries, num_train]"""
    groups = digits(scores, labels)
    values, sums = scores.values[:, 0], groups.sums[:, 0].float()
    sizes = torch.tensor(groups.sizes)
    places = torch.tensor([groups.names.index(_name(label)) for label in labels.tolist()])
    own = labels[None] == shown[:, None]
    return {
        IMAGES: values,
        MEANS: (sums / sizes)[:, places],
        OWN: values * own,
        STRONGEST: values * (places[None] == sums.abs().argmax(1)[:, None]),
        COUNT: own.float(),
    }


def table(document: dict[str, Any]) -> str:
    """Render a document as Markdown."""
    head = ["summed of a half's images", *(f"LDS, {kind} queries" for kind in QUERY_KINDS)]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    rows = [(name, [row[kind] for kind in QUERY_KINDS]) for name, row in document["rows"].items()]
    if None not in document["ceiling"].values():
        rows.append((CEILING, [document["ceiling"][kind] for kind in QUERY_KINDS]))
    for name, intervals in rows:
        cells = [name, *("{:.2f} [{:.2f}, {:.2f}]".format(*interval) for interval in intervals)]
        lines.append(f"| {' | '.join(cells)} |")
    sums = document["sums"]
    lines += [
        "",
        f"The query's digit has the highest of the ten sums for {sums['own_first']:.0%} of the queries; "
        f"{sums['above_noise']:.0%} of all sums are above their noise; informativeness is "
        f"{sums['informativeness']:.2f} (means over queries).",
    ]
    return "\n".join(lines)


def _name(digit: int) -> str:
    return f"digit {digit}"


def _sums(scores: Scores, labels: Tensor, shown: Tensor) -> dict[str, float]:
    groups = digits(scores, labels)
    first = [groups.names[g] for g in groups.sums[:, 0].argmax(1).tolist()]
    own = [name == _name(label) for name, label in zip(first, shown.tolist(), strict=True)]
    return {
        "own_first": sum(own) / len(own),
        "above_noise": groups.above_noise().double().mean().item(),
        "informativeness": groups.informativeness().mean().item(),
    }


if __name__ == "__main__":
    sys.exit(main())
