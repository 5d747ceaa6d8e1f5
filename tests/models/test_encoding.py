"""The frozen parts of a model run once per sample, whatever is measured of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import assert_same_but_for_rounding
from families import PROMPTS, Captioned, make_family
from PIL import Image

import journey
from journey.errors import StoreMismatchError
from journey.measure.draws import StratifiedDraws
from journey.models.encoding import choose_captions, encode_all
from journey.models.load import as_denoiser

NUM_SAMPLES = 3
BATCH = 9  # as many whole passes as make eight images
MEASURED: dict[str, Any] = {"measurement": journey.TrainingLoss(), "progress": False}
OPTIONS: dict[str, Any] = {
    "progress": False,
    "shard_size": 3,
    "check": False,
    "draws": StratifiedDraws(num_draws=2),
    "projector": journey.CountSketch(256),
    "measurement": journey.TrainingLoss(),
    "row": "float32",
}


class Counter:
    """Counts the rows that go through the frozen parts of a pipeline."""

    def __init__(self, pipeline: Any) -> None:
        self.rows = {"vae": 0, "text_encoder": 0}
        self.fail_at: int | None = None
        encode, forward = pipeline.vae.encode, pipeline.text_encoder.forward

        def counted_encode(x: Any, *args: Any, **kwargs: Any) -> Any:
            if self.fail_at is not None and self.rows["vae"] >= self.fail_at:
                raise KeyboardInterrupt
            self.rows["vae"] += len(x)
            return encode(x, *args, **kwargs)

        def counted_forward(input_ids: Any, *args: Any, **kwargs: Any) -> Any:
            self.rows["text_encoder"] += len(input_ids)
            return forward(input_ids, *args, **kwargs)

        pipeline.vae.encode, pipeline.text_encoder.forward = counted_encode, counted_forward


@pytest.mark.parametrize("name", ["Stable Diffusion", "Stable Diffusion XL", "Stable Diffusion 3", "Flux"])
def test_encoders_run_once_per_sample_whatever_is_measured(name: str, tmp_path: Path) -> None:
    pipeline, dataset = make_family(name), Captioned(NUM_SAMPLES)
    counter = Counter(pipeline)
    network = as_denoiser(pipeline).network
    other = {key: value + 0.01 for key, value in network.state_dict().items()}
    journey.featurize(
        pipeline,
        dataset,
        tmp_path / "f",
        checkpoints=[network.state_dict(), other],
        **{**OPTIONS, "draws": StratifiedDraws(num_draws=2, bins=2)},
    )
    # Once for the fit, of at most 512 images, and once for all of the rest, in whole batches.
    assert counter.rows == {"vae": NUM_SAMPLES + BATCH, "text_encoder": NUM_SAMPLES + BATCH}


def test_every_caption_is_encoded_once(tmp_path: Path) -> None:
    pipeline, dataset = make_family("Stable Diffusion"), Captioned(NUM_SAMPLES, several=True)
    counter = Counter(pipeline)
    journey.featurize(pipeline, dataset, tmp_path / "f", **OPTIONS)
    assert counter.rows == {"vae": NUM_SAMPLES + BATCH, "text_encoder": 3 * (NUM_SAMPLES + BATCH)}


def test_an_interrupted_run_encodes_only_what_is_missing(tmp_path: Path) -> None:
    pipeline, dataset = make_family("Stable Diffusion"), Captioned(NUM_SAMPLES)
    counter, options = Counter(pipeline), {**OPTIONS, "shard_size": 2}
    fit = journey.fit(pipeline, dataset, tmp_path / "fit", projector=OPTIONS["projector"], **MEASURED)
    counter.rows.update(vae=0, text_encoder=0)
    counter.fail_at = BATCH
    with pytest.raises(KeyboardInterrupt):
        journey.featurize(pipeline, dataset, tmp_path / "f", fit=fit, **options)
    counter.fail_at = None
    resumed = journey.featurize(pipeline, dataset, tmp_path / "f", fit=fit, **options)
    assert counter.rows == {"vae": 2 * BATCH, "text_encoder": 2 * BATCH}  # of two shards
    whole = journey.featurize(pipeline, dataset, tmp_path / "g", fit=fit, **options)
    assert torch.equal(resumed.store.features("0"), whole.store.features("0"))


def test_features_do_not_depend_on_shards(tmp_path: Path) -> None:
    pipeline, dataset = make_family("Stable Diffusion"), Captioned(NUM_SAMPLES, several=True)
    draws = OPTIONS["draws"]
    found = journey.featurize(pipeline, dataset, tmp_path / "f", **OPTIONS).matrix()
    other = {**OPTIONS, "shard_size": 4, "batch_size": 2}
    again = journey.featurize(pipeline, dataset, tmp_path / "g", **other).matrix()
    torch.testing.assert_close(found, again, rtol=1e-3, atol=1e-4 * found.abs().max().item())
    denoiser = as_denoiser(pipeline)
    encoded = denoiser.encode([dataset[i] for i in range(NUM_SAMPLES)], list(range(NUM_SAMPLES)))
    choice = choose_captions(draws.seed, range(NUM_SAMPLES), encoded.counts, 2)
    direct, _ = journey.Featurizer(
        denoiser, measurement=journey.TrainingLoss(), projector=OPTIONS["projector"]
    ).features(
        encoded.x0,
        draws.timesteps(range(NUM_SAMPLES), 1000),
        draws.noise(range(NUM_SAMPLES), (4, 8, 8), torch.device("cpu")),
        condition=encoded.conditions(choice),
    )
    torch.testing.assert_close(found, direct[:, 0], rtol=1e-3, atol=1e-4 * found.abs().max().item())


def test_encodings_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    pipeline = make_family("Stable Diffusion")
    with torch.no_grad():
        pipeline.text_encoder.get_input_embeddings().weight.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"encoder_hidden_states of dataset must be finite"):
        journey.featurize(pipeline, Captioned(2), tmp_path / "f", **OPTIONS)


@pytest.mark.parametrize("change", ["encoder", "captions", "latents"])
def test_other_encoders_captions_or_latents_are_another_run(tmp_path: Path, change: str) -> None:
    from journey.models.stable_diffusion import StableDiffusion

    pipeline, dataset = make_family("Stable Diffusion"), Captioned(2)
    journey.featurize(pipeline, dataset, tmp_path / "f", **OPTIONS)
    latents = "mean"
    if change == "encoder":
        with torch.no_grad():
            next(pipeline.text_encoder.parameters()).mul_(1.01)
    elif change == "captions":
        dataset.several = True
    else:
        latents = "sample"
    message = {"encoder": "encoding.text_encoder", "captions": "another caption", "latents": "encoding.latents"}[change]
    with pytest.raises(StoreMismatchError, match=message):
        journey.featurize(StableDiffusion(pipeline, latents=latents), dataset, tmp_path / "f", **OPTIONS)


def test_captions_are_chosen_by_seed_sample_and_draw_alone() -> None:
    ids, counts = list(range(200)), [3] * 200
    choice = choose_captions(0, ids, counts, 20)
    assert torch.equal(choose_captions(0, [7], [3], 20), choice[7:8])
    assert torch.equal(choose_captions(0, ids, counts, 5), choice[:, :5])
    assert not torch.equal(choose_captions(1, ids, counts, 20), choice)
    # 4,000 choices of three: five standard errors of each share.
    shares = torch.bincount(choice.flatten(), minlength=3).double() / choice.numel()
    assert len(shares) == 3
    assert (shares - 1 / 3).abs().max() < 5 * (2 / 9 / choice.numel()) ** 0.5
    assert not choose_captions(0, ids, [1] * 200, 20).any()


def test_a_caption_that_is_missing_is_named(tmp_path: Path) -> None:
    class Untold(Captioned):
        def __getitem__(self, index: int) -> Any:
            item = super().__getitem__(index)
            return {"image": item["image"]} if index == 1 else item

    with pytest.raises(ValueError, match=r"dataset\[1\] must have one of the keys text, caption, prompt, captions"):
        journey.featurize(make_family("Stable Diffusion"), Untold(2), tmp_path / "f", **OPTIONS)


def test_a_folder_with_captions_is_measured_like_the_same_dataset(tmp_path: Path) -> None:
    folder, pictures, lines = tmp_path / "images", [], []
    folder.mkdir()
    for i in range(2):
        pixels = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        pictures.append({"image": pixels.permute(2, 0, 1), "text": PROMPTS[i], "id": f"{i}.png"})
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": PROMPTS[i]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pipeline = make_family("Stable Diffusion")
    found = journey.featurize(pipeline, folder, tmp_path / "f", **OPTIONS)
    wanted = journey.featurize(pipeline, pictures, tmp_path / "g", **OPTIONS)
    assert_same_but_for_rounding(found.matrix(), wanted.matrix())


def test_prompts_of_the_fixture_differ() -> None:
    states = as_denoiser(make_family("Stable Diffusion")).encode_prompt(list(PROMPTS))["encoder_hidden_states"]
    assert (states[0] - states[2]).abs().max() > 1e-3


def test_what_is_random_in_an_encoding_is_keyed_by_ids_that_continue_those_of_another_set() -> None:
    denoiser, dataset = as_denoiser(make_family("DiT"), latents="sample"), Captioned(3)
    later = encode_all(denoiser, dataset, first_id=3)
    assert_same_but_for_rounding(later.x0, denoiser.encode_images(dataset.images, [3, 4, 5]))
    assert not torch.allclose(later.x0, encode_all(denoiser, dataset).x0, rtol=1e-2)
    assert encode_all(denoiser, later) is later


def test_an_encoding_in_memory_that_is_not_finite_is_refused() -> None:
    pipeline = make_family("DiT")
    with torch.no_grad():
        next(pipeline.vae.encoder.parameters()).fill_(float("inf"))
    with pytest.raises(ValueError, match="x0 of queries must be finite, got NaN or infinity from the model's encoders"):
        encode_all(as_denoiser(pipeline), Captioned(3), name="queries")
