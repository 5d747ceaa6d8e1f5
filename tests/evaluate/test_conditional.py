"""Retraining of latent and conditional models: the loss is the model's own, and what is trained fits it again."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import assert_same_but_for_rounding
from families import Captioned, make_family
from models import make_images, make_scheduler, make_unet
from safetensors.torch import save_file
from torch import Tensor, nn

import journey
import journey.models.checkpoints
from journey.evaluate.effects import generation_change, loss_change, step_loss_change
from journey.evaluate.optimize import stratified_timesteps
from journey.evaluate.responses import measure_responses
from journey.evaluate.retrain import Run, retrain
from journey.evaluate.training import UNetTraining
from journey.measure.draws import StratifiedDraws
from journey.models.conditional import ConditionalDenoiser
from journey.models.load import as_denoiser
from journey.ops.noise import query_noise

CPU, SEED = torch.device("cpu"), 5


def class_conditional() -> tuple[ConditionalDenoiser, list[dict[str, Any]]]:
    model = ConditionalDenoiser(make_unet(num_class_embeds=3), make_scheduler(), name="class_labels")
    return model, [{"image": x, "label": i} for i, x in enumerate(make_images(3))]


def network_of(pipeline: Any) -> nn.Module:
    return as_denoiser(pipeline).network


def latents(pipeline: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return pipeline.vae.encode(images).latent_dist.mean * pipeline.vae.config.scaling_factor


def test_a_class_conditional_model_is_told_the_labels_of_its_batch() -> None:
    model, dataset = class_conditional()
    train, chosen = UNetTraining(model, dataset, steps=1, batch_size=4), torch.tensor([2, 0, 2, 1])
    network = train.build(0)
    found = train._loss(train._denoiser.around(network), chosen, torch.Generator().manual_seed(SEED))
    generator = torch.Generator().manual_seed(SEED)
    x0 = make_images(3)[chosen]
    times, noise = stratified_timesteps(4, 100, generator), torch.randn(x0.shape, generator=generator)
    output = network(model.scheduler.add_noise(x0, noise, times), times, class_labels=chosen).sample
    torch.testing.assert_close(found, F.mse_loss(output, noise))


def test_a_latent_text_model_is_trained_on_latents_under_one_of_each_images_captions() -> None:
    pipeline, dataset = make_family("Stable Diffusion v_prediction"), Captioned(3, several=True)
    train, chosen = UNetTraining(pipeline, dataset, steps=1, batch_size=4), torch.tensor([2, 0, 2, 1])
    network = train.build(0)
    found = train._loss(train._denoiser.around(network), chosen, torch.Generator().manual_seed(SEED))
    generator = torch.Generator().manual_seed(SEED)
    x0 = latents(pipeline, dataset.images[chosen])
    times, noise = stratified_timesteps(4, 1000, generator), torch.randn(x0.shape, generator=generator)
    numbers = (torch.rand(4, generator=generator) * 3).long().tolist()
    captions = [dataset[i]["text"][n] for i, n in zip(chosen.tolist(), numbers, strict=True)]
    assert len(set(captions)) > 1
    states, _ = pipeline.encode_prompt(captions, CPU, 1, False)
    output = network(pipeline.scheduler.add_noise(x0, noise, times), times, encoder_hidden_states=states).sample
    torch.testing.assert_close(found, F.mse_loss(output, pipeline.scheduler.get_velocity(x0, noise, times)))


@pytest.mark.parametrize("name", ["Stable Diffusion", "Stable Diffusion XL", "DiT", "Stable Diffusion 3", "Flux"])
def test_every_family_is_retrained_and_its_weights_fit_it_again(name: str, tmp_path: Path) -> None:
    pipeline, dataset, draws = make_family(name), Captioned(3), StratifiedDraws(2)
    train = UNetTraining(pipeline, dataset, steps=2, batch_size=2)
    before = measure_responses(pipeline, [None], dataset, draws=draws, progress=False)
    paths = retrain(train, [Run((0, 2), 0)], tmp_path, progress=False)
    found = measure_responses(pipeline, paths, dataset, draws=draws, progress=False)
    network_of(pipeline).load_state_dict(train((0, 2), 0).state_dict())
    again = measure_responses(pipeline, [None], dataset, draws=draws, progress=False)
    assert_same_but_for_rounding(found, again)
    assert not torch.allclose(found, before, rtol=1e-3)


class Pickler(pickle.Pickler):
    """Remembers which parameters go out."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.parameters: list[nn.Parameter] = []

    def persistent_id(self, found: Any) -> None:
        if isinstance(found, nn.Parameter):
            self.parameters.append(found)


def test_another_process_receives_neither_weights_nor_encoders() -> None:
    pipeline, file = make_family("Flux"), io.BytesIO()
    train = UNetTraining(pipeline, Captioned(2), steps=1, batch_size=2)
    pickler = Pickler(file)
    pickler.dump(train)
    assert pickler.parameters == []
    pickler.dump(pipeline.vae)
    assert pickler.parameters, "or this counts nothing"
    arrived = pickle.loads(pickle.dumps(train))
    assert arrived.fingerprint() == train.fingerprint()
    pairs = zip(arrived((0, 1), 0).parameters(), train((0, 1), 0).parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_captions_are_part_of_what_determines_the_models() -> None:
    model, dataset = class_conditional()
    others = [{**dataset[0], "label": 2}, *dataset[1:]]
    prints = [UNetTraining(model, some, steps=1).fingerprint() for some in (dataset, dataset, others)]
    assert prints[0] == prints[1] != prints[2]


def test_an_adapter_is_refused_instead_of_training_all_weights() -> None:
    peft = pytest.importorskip("peft")
    pipeline = make_family("Stable Diffusion")
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    pipeline.unet.eval()
    with pytest.raises(TypeError, match="model must be without adapters, got default"):
        UNetTraining(pipeline, Captioned(2), steps=1)


def test_effects_on_the_loss_are_told_what_the_generation_was(tmp_path: Path) -> None:
    pipeline, draws = make_family("Stable Diffusion"), StratifiedDraws(2)
    trajectory = journey.record(pipeline, prompt=["two", "a red apple"], num_inference_steps=2, progress=False)
    weights = tmp_path / "other.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in pipeline.unet.state_dict().items()}, weights)
    states, _ = pipeline.encode_prompt(["two", "a red apple"], CPU, 1, False)
    step = int(trajectory.timesteps[1])

    def loss(x0: Tensor, times: Tensor, noise: Tensor, q: int) -> Tensor:
        x_t = pipeline.scheduler.add_noise(x0.expand_as(noise), noise, times)
        with torch.no_grad():
            output = pipeline.unet(x_t, times, encoder_hidden_states=states[[q, q]]).sample
        return F.mse_loss(output, noise)

    def losses() -> Tensor:
        rows = []
        for q in range(2):
            at_step = query_noise(0, [q], step, 2, (4, 8, 8), CPU)[0]
            times, noise = draws.timesteps([q], 1000)[0, 0], draws.noise([q], (4, 8, 8), CPU)[0, 0]
            rows.append(loss(trajectory.images[q], times, noise, q))
            rows.append(loss(trajectory.x0_hat[q, 1], torch.tensor([step, step]), at_step, q))
        return torch.stack(rows)

    found = [
        effect(weights, [0, 1])
        for effect in (
            loss_change(pipeline, trajectory, draws=draws),
            step_loss_change(pipeline, trajectory, step, num_draws=2),
        )
    ]
    before = losses()
    with journey.models.checkpoints.loaded(pipeline.unet, weights):
        change = losses() - before
    torch.testing.assert_close(torch.stack(found, 1).flatten().float(), change, rtol=1e-3, atol=1e-5)
    assert change.abs().min() > 1e-3


def test_generations_of_latent_models_are_not_compared() -> None:
    with pytest.raises(TypeError, match="got StableDiffusion, which denoises latents; measure_effect with"):
        generation_change(make_family("Stable Diffusion"))
