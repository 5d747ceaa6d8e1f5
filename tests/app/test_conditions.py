"""Models that read text or classes, and denoise latents, are told what the library would tell them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import Captioned, dit, stable_diffusion
from PIL import Image

import journey
from journey.app.session import Session
from journey.app.workbench import Workbench
from journey.data.items import image_of
from journey.generation.noised import noised_trajectory
from journey.models.encoding import encode_all

STEPS = 4
TOLD: dict[str, tuple[Any, str, dict[str, Any], dict[str, Any]]] = {
    "prompt": (stable_diffusion, "a red apple", {"prompt": "a red apple"}, {"text": "a red apple"}),
    "label": (dit, "2", {"class_labels": 2}, {"label": 2}),
}


@pytest.mark.parametrize("form", TOLD)
def test_a_told_model_is_scored_as_by_the_library(form: str, tmp_path: Path) -> None:
    make, words, given, item = TOLD[form]
    dataset: Any = Captioned() if form == "prompt" else [(image_of(Captioned()[i], "i"), i) for i in range(3)]
    options: dict[str, Any] = {"projector": journey.CountSketch(64), "draws": journey.StratifiedDraws(2)}
    features = journey.featurize(make(), dataset, tmp_path / "features", progress=False, **options)
    bench = Workbench(features, dataset, num_scored=2)
    assert bench.told == form
    session = Session(bench)
    session.generate(words, seed=1, num_inference_steps=STEPS)
    expected = journey.record(bench.denoiser, seed=1, num_inference_steps=STEPS, progress=False, **given)
    scores = journey.score(features, expected, steps=expected.spread(2), progress=False)
    assert session.scores is not None
    assert torch.equal(session.scores.values, scores.values)

    height, width = session.trajectory.image_pixels.shape[-2:]
    picture = Image.new("RGB", (width, height), (200, 30, 30))
    picture.save(tmp_path / "own.png")
    session.open(tmp_path / "own.png", words, seed=2, num_inference_steps=STEPS)
    encoded = encode_all(bench.denoiser, [{"image": picture, **item}])
    own = noised_trajectory(
        bench.denoiser, encoded.x0, expected.timesteps.tolist(), condition=encoded.condition, seed=2
    )
    scores = journey.score(features, own, steps=own.spread(2), progress=False)
    assert torch.equal(session.scores.values, scores.values)
    assert session.trajectory is not None
    assert session.trajectory.pixels is not None
    assert session.trajectory.pixels.shape == (1, STEPS + 1, 3, height, width)
    assert torch.equal(
        session.trajectory.image_pixels, (bench.denoiser.decode(own.images) + 1).mul(127.5).round() / 127.5 - 1
    )
    assert "data:image/" in session.page()
    if form == "label":
        with pytest.raises(ValueError, match="the class must be a number from 0, got 'seven'"):
            session.generate("seven")
