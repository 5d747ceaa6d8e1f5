"""Precision and recall of ``journey check`` on planted folders, beside rankings that need no gradients."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.check import rivals
from bench.check.adapters import train
from bench.check.folders import NUM_IMAGES, Planted, plant
from journey.audit.check import check
from journey.audit.finding import FAULTS, Check
from journey.audit.kernel import Kernel

LOSS = "loss after training"
KINDS = ("duplicates", "caption", "odd")


def folder(seed: int, known: bool, work: Path) -> dict[str, Any]:
    """Plant, train and check one folder, or read what an earlier run found.

    Args:
        seed: Names the folder.
        known: As for ``plant``.
        work: Where models, features and results are kept.

    Returns:
        What was found, as JSON values.
    """
    name = f"{'known' if known else 'unknown'}-{seed}"
    kept = work / name / "faults.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    planted = plant(seed, known=known)
    trained = train(planted, work, name)
    begin = time.perf_counter()
    checked = check(trained.features, planted.dataset, progress=False)
    seconds = {**trained.seconds, "check": time.perf_counter() - begin}
    found = {
        "seed": seed,
        "copy": planted.copy,
        "off topic": planted.off_topic,
        "seconds": seconds,
        **judge(planted, checked),
        "numbers": {name: list(values) for name, values in checked.numbers.items()},
        "ranks": _ranks(planted, checked, trained.model, trained.features),
    }
    kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def judge(planted: Planted, checked: Check) -> dict[str, Any]:
    """Say which findings are right and which planted faults were found.

    A finding is right if it is of the planted kind and all its images are of the fault. A fault is found if a right
    finding names it: of two swapped captions, at least one.

    Args:
        planted: The folder.
        checked: What was found in it.

    Returns:
        By kind ``[right findings, findings, faults found, faults]``, and the findings.
    """
    wanted = {"duplicates": set(planted.duplicate), "caption": set(planted.swapped), "odd": {planted.bad}}
    counts, told = {}, []
    for kind in FAULTS:
        findings = checked.of_kind(kind)
        right = [finding for finding in findings if set(finding.ids) <= wanted.get(kind, {planted.bad})]
        whole = [f for f in right if kind != "duplicates" or set(f.ids) == wanted[kind]]
        counts[kind] = [len(whole), len(findings), int(bool(whole)), int(kind in wanted)]
        told += [[kind, list(finding.ids), finding.value, finding.error] for finding in findings]
    return {"counts": counts, "findings": told}


def _ranks(planted: Planted, checked: Check, model: Any, features: Any) -> dict[str, dict[str, int]]:
    """Where the planted images stand in each ranking, from 1; the better of two swapped captions."""
    kernel = Kernel.of(features)
    rows = torch.cat([block.values for block in kernel.blocks()])
    cosines = rows / (kernel.lengths[:, None] * kernel.lengths)
    pixels, structure = rivals.pixel_pairs(planted), rivals.structure_pairs(planted)
    denoiser, loss = rivals.denoiser_pairs(planted, model), rivals.losses(planted, model)
    numbers = {name: torch.tensor(values, dtype=torch.float64) for name, values in checked.numbers.items()}
    pairs = {
        "journey check": cosines + cosines.T,
        "pixels": pixels,
        "structure (SSIM)": structure,
        "optimal denoiser": denoiser,
    }
    odd: dict[str, Tensor] = {
        "journey check": numbers["oddness"],
        LOSS: loss,
        "pixels": rivals.apart(pixels),
        "structure (SSIM)": rivals.apart(structure),
        "optimal denoiser": rivals.apart(denoiser),
    }
    captions = {"journey check": numbers["caption_misfit"], LOSS: loss}
    return {
        "duplicates": {name: _pair_rank(values, planted.duplicate) for name, values in pairs.items()},
        "caption": {name: min(_rank(values, i) for i in planted.swapped) for name, values in captions.items()},
        "odd": {name: _rank(values, planted.bad) for name, values in odd.items()},
    }


def _rank(values: Tensor, i: int) -> int:
    return 1 + int((values > values[i]).sum())


def _pair_rank(values: Tensor, pair: tuple[int, int]) -> int:
    above = torch.ones(NUM_IMAGES, NUM_IMAGES, dtype=torch.bool).triu(1)
    return 1 + int(((values > values[pair]) & above).sum())
