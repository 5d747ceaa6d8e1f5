"""Methods on latent and conditional models: formulas computed again from the pipeline's own parts, by autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, Captioned, make_family
from models import make_images, make_scheduler, make_unet
from PIL import Image
from score_runs import published_scores
from torch import Tensor

import journey
from journey.generation.trajectory import Trajectory
from journey.measure.draws import Draws, StratifiedDraws
from journey.methods import das, dtrak, journey_trak, trak
from journey.methods.method import Method
from journey.methods.preconditioners import Gram
from journey.models.conditional import ConditionalDenoiser
from journey.models.encoding import choose_captions
from journey.models.load import as_denoiser
from journey.ops.noise import query_noise
from journey.projectors.exact import Identity

NUM_TRAIN, NUM_QUERIES = 3, 2
CPU = torch.device("cpu")


class ByHand:
    """What a method measures of one model, one draw after the other, by nothing but the model's own parts."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "class-conditional UNet":
            unet, scheduler = make_unet(num_class_embeds=3), make_scheduler()
            self.model: Any = ConditionalDenoiser(unet, scheduler, name="class_labels")
            self.network, self.scheduler = unet, scheduler
            self.train: Any = [{"image": x, "class_labels": i} for i, x in enumerate(make_images(NUM_TRAIN))]
            self.queries: Any = [
                {"image": x, "class_labels": 2 - i} for i, x in enumerate(make_images(NUM_QUERIES, seed=8))
            ]
        else:
            self.model = make_family(name)
            self.network, self.scheduler = as_denoiser(self.model).network, self.model.scheduler
            self.train = Captioned(NUM_TRAIN, several=True)
            pictures = [Image.fromarray(np.full((16, 16, 3), 60 + 90 * i, np.uint8)) for i in range(NUM_QUERIES)]
            texts = ["two red pears", "a green apple"]
            self.queries = [
                {"image": x, "text": text, "label": 7 + i}
                for i, (x, text) in enumerate(zip(pictures, texts, strict=True))
            ]
        self.num_timesteps = self.scheduler.config.num_train_timesteps

    @torch.no_grad()
    def image(self, item: dict[str, Any]) -> Tensor:
        """What is denoised. [1, C, H, W]."""
        image = item["image"]
        if isinstance(image, Image.Image):
            image = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 127.5 - 1
        if self.name == "class-conditional UNet":
            return image[None]
        return self.model.vae.encode(image[None]).latent_dist.mean * self.model.vae.config.scaling_factor

    def told(self, item: dict[str, Any], caption: int) -> Tensor:
        """What the network is told besides. [1, ...]."""
        if self.name == "class-conditional UNet":
            return torch.tensor([item["class_labels"]])
        if self.name == "DiT":
            return torch.tensor([item["label"]])
        captions = [item["text"]] if isinstance(item["text"], str) else item["text"]
        with torch.no_grad():
            return self.model.encode_prompt(captions[caption], CPU, 1, False)[0]

    def predict(self, x_t: Tensor, t: Tensor, told: Tensor) -> Tensor:
        if self.name == "DiT":
            return self.network(x_t, timestep=t[None], class_labels=told).sample[:, :4]
        return self.network(x_t, t[None], told).sample

    def error(self, x0: Tensor, t: Tensor, noise: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """The prediction and its loss."""
        output = self.predict(self.scheduler.add_noise(x0, noise[None], t[None]), t, told)
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(x0, noise[None], t[None]) if velocity else noise[None]
        return output, F.mse_loss(output, target)

    def gradients(self, draws: Draws, items: Any, first_id: int, kind: str = "loss") -> tuple[Tensor, Tensor]:
        """Of every draw of some images, float64 [num, num_draws, grad_dim], and the losses [num, num_draws]."""
        rows, losses = [], []
        for i in range(len(items)):
            item, ids = items[i], [first_id + i]
            x0 = self.image(item)
            texts = item.get("text", "")
            choice = choose_captions(0, ids, [1 if isinstance(texts, str) else len(texts)], draws.num_draws)[0]
            times = draws.timesteps(ids, self.num_timesteps)[0, 0]
            noise = draws.noise(ids, tuple(x0.shape[1:]), CPU)[0, 0]
            for t, e, caption in zip(times, noise, choice.tolist(), strict=True):
                output, loss = self.error(x0, t, e, self.told(item, caption))
                value = {"loss": loss, "norm": output.square().mean(), "mean": output.mean()}[kind]
                rows.append(torch.cat([g.flatten() for g in self.grad(value)]).double())
                losses.append(loss.detach().double())
        return torch.stack(rows).view(len(items), draws.num_draws, -1), torch.stack(losses).view(len(items), -1)

    def grad(self, value: Tensor) -> list[Tensor]:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


MODELS = ["Stable Diffusion v_prediction", "DiT", "class-conditional UNet"]


@pytest.fixture(scope="module", params=MODELS)
def by_hand(request: pytest.FixtureRequest) -> ByHand:
    return ByHand(request.param)


def kernel(query: Tensor, train: Tensor, damping: float) -> Tensor:
    gram = train @ train.T  # the dual form: far fewer images than parameters
    coefficients = query @ train.T @ torch.linalg.pinv(gram, hermitian=True)
    ridge = damping * gram.trace() / len(train) * torch.eye(len(train), dtype=gram.dtype)
    return coefficients @ gram @ torch.linalg.solve(gram + ridge, torch.eye(len(train), dtype=gram.dtype))


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-4: float32 gradients, times a condition number that damping keeps below a hundred."""
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= 1e-4 * expected.norm()


def test_features_are_gradients_through_the_models_own_encoders(by_hand: ByHand) -> None:
    method = dtrak(num_draws=4).change(projector=Identity())
    measured, timesteps = method.measure(as_denoiser(by_hand.model), by_hand.train, by_hand.queries, progress=False)
    assert timesteps.tolist() == [0]
    train, _ = by_hand.gradients(method.draws, by_hand.train, 0, "norm")
    query, _ = by_hand.gradients(method.draws, by_hand.queries, NUM_TRAIN, "norm")
    for found, expected in zip((*measured.train, *measured.query[:, 0]), (*train, *query), strict=True):
        assert_close(found, expected.mean(0))


@pytest.mark.parametrize("preset", [trak, dtrak])
def test_scores_are_the_kernel_of_mean_gradients(by_hand: ByHand, preset: Any) -> None:
    method = preset(num_draws=4).change(projector=Identity(), preconditioner=Gram(0.1))
    kind = "norm" if preset is dtrak else "loss"
    train = by_hand.gradients(method.draws, by_hand.train, 0, kind)[0].mean(1)
    query = by_hand.gradients(method.draws, by_hand.queries, NUM_TRAIN, kind)[0].mean(1)
    found = method.run(by_hand.model, by_hand.train, by_hand.queries, progress=False).values[:, 0]
    assert_close(found, kernel(query, train, 0.1))


def test_das_has_the_residuals_of_what_each_image_was_told(by_hand: ByHand) -> None:
    method = das(num_draws=4, squared=False).change(projector=Identity())
    train, losses = by_hand.gradients(method.draws, by_hand.train, 0, "mean")
    train = F.normalize(train, dim=-1).mean(1)
    query = F.normalize(by_hand.gradients(method.draws, by_hand.queries, NUM_TRAIN, "mean")[0], dim=-1).mean(1)
    free = 1 - kernel(train, train, 1.0).diagonal()
    found = method.run(by_hand.model, by_hand.train, by_hand.queries, progress=False).values[:, 0]
    assert_close(found, kernel(query, train, 1.0) * losses.mean(1).sqrt() / free)


def test_images_are_asked_at_steps_through_predictions_that_are_told_their_caption(by_hand: ByHand) -> None:
    method, steps = journey_trak(num_draws=2).change(projector=Identity(), preconditioner=Gram(0.1)), [60, 20]
    told, x_t, x0_hat = [], [], []
    for i in range(NUM_QUERIES):
        x0, given = by_hand.image(by_hand.queries[i]), by_hand.told(by_hand.queries[i], 0)
        noise = query_noise(0, [i], -1, 1, tuple(x0.shape[1:]), CPU)[:, 0]
        for t in steps:
            noised, abar = (
                by_hand.scheduler.add_noise(x0, noise, torch.tensor([t])),
                by_hand.scheduler.alphas_cumprod[t],
            )
            with torch.no_grad():
                output = by_hand.predict(noised, torch.tensor(t), given)
            if by_hand.scheduler.config.prediction_type == "v_prediction":
                x0_hat.append(abar.sqrt() * noised - (1 - abar).sqrt() * output)
            else:
                x0_hat.append((noised - (1 - abar).sqrt() * output) / abar.sqrt())
            x_t.append(noised)
        told.append(given)
    shape = (NUM_QUERIES, len(steps), *x_t[0].shape[1:])
    name = "encoder_hidden_states" if "Stable" in by_hand.name else "class_labels"
    condition = journey.models.condition.Condition({name: torch.cat(told)})
    images = torch.cat([by_hand.image(item) for item in by_hand.queries])
    trajectory = Trajectory(
        torch.tensor(steps), torch.cat(x_t).view(shape), torch.cat(x0_hat).view(shape), images, condition
    )
    expected = method.run(by_hand.model, by_hand.train, trajectory, progress=False)
    found = method.run(by_hand.model, by_hand.train, by_hand.queries, steps=steps, progress=False)
    assert found.timesteps.tolist() == steps
    assert_close(found.values, expected.values.double())


@pytest.mark.parametrize("name", FAMILIES)
def test_generations_with_prompts_score_as_in_the_library(name: str, tmp_path: Path) -> None:
    pipeline, dataset, draws = make_family(name), Captioned(NUM_TRAIN, several=True), StratifiedDraws(2)
    told: Any = {"class_labels": [5, 6]} if name == "DiT" else {"prompt": ["two green pears", "a red apple"]}
    trajectory = journey.record(pipeline, num_inference_steps=2, progress=False, **told)
    exact = {"projector": Identity(), "measurement": journey.TrainingLoss(), "row": "float32", "progress": False}
    features = journey.featurize(pipeline, dataset, tmp_path, draws=draws, **exact)
    expected = published_scores(features, trajectory, damping=0.1, num_draws=4)
    method = Method(
        "library", "", draws=draws, projector=Identity(), at_steps=True, query_draws=4, preconditioner=Gram(0.1)
    )
    found = method.run(pipeline, dataset, trajectory, progress=False)
    assert_close(found.values, expected)


def test_a_finished_generation_is_measured_in_its_latents_under_its_prompt() -> None:
    by_hand = ByHand("Stable Diffusion")
    trajectory = journey.record(by_hand.model, prompt=["two", "a red apple"], num_inference_steps=2, progress=False)
    method = dtrak(num_draws=2).change(projector=Identity())
    measured, _ = method.measure(as_denoiser(by_hand.model), by_hand.train, trajectory, progress=False)
    items = [{"image": x, "text": text} for x, text in zip(trajectory.images, trajectory.prompts, strict=True)]
    by_hand.image = lambda item: item["image"][None]  # type: ignore[method-assign]
    expected, _ = by_hand.gradients(method.draws, items, NUM_TRAIN, "norm")
    assert_close(measured.query[:, 0], expected.mean(1))


def test_encoders_run_once_for_each_image_and_caption_whatever_the_checkpoints() -> None:
    pipeline, train, queries = make_family("Stable Diffusion"), Captioned(3, several=True), Captioned(2)
    rows = {"vae": 0, "text_encoder": 0}
    encode, forward = pipeline.vae.encode, pipeline.text_encoder.forward

    def counted_encode(x: Tensor, *args: Any, **options: Any) -> Any:
        rows["vae"] += len(x)
        return encode(x, *args, **options)

    def counted_forward(ids: Tensor, *args: Any, **options: Any) -> Any:
        rows["text_encoder"] += len(ids)
        return forward(ids, *args, **options)

    pipeline.vae.encode, pipeline.text_encoder.forward = counted_encode, counted_forward
    weights = pipeline.unet.state_dict()
    others = {name: tensor + 0.01 for name, tensor in weights.items()}
    das(num_draws=2, proj_dim=64).run(pipeline, train, queries, checkpoints=[weights, others], progress=False)
    assert rows == {"vae": 5, "text_encoder": 3 * 3 + 2}
    assert train.reads == [1, 1, 1]
    assert queries.reads == [1, 1]


def test_the_size_of_batches_changes_nothing_but_rounding() -> None:
    pipeline, method = make_family("Stable Diffusion"), trak(num_draws=2, proj_dim=64)
    whole, single = (
        method.run(pipeline, Captioned(3, several=True), Captioned(2), batch_size=size, progress=False).values
        for size in (None, 1)
    )
    assert_close(single, whole.double())
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        method.run(pipeline, Captioned(3), Captioned(2), batch_size=0, progress=False)


def test_a_query_without_its_caption_is_named() -> None:
    queries = [{"image": torch.zeros(3, 16, 16), "text": "two"}, {"image": torch.zeros(3, 16, 16)}]
    with pytest.raises(ValueError, match=r"queries\[1\] must have one of the keys text"):
        trak().run(make_family("Stable Diffusion"), Captioned(3), queries, progress=False)


def test_pictures_of_another_size_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"queries\[0\] does not fit: size must be"):
        trak().run(
            make_family("Stable Diffusion"),
            Captioned(3),
            [{"image": torch.zeros(3, 15, 16), "text": "two"}],
            progress=False,
        )


def test_a_method_measures_the_adapter_alone_where_there_is_one() -> None:
    peft = pytest.importorskip("peft")
    pipeline = make_family("Stable Diffusion")
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipeline.unet.eval()
    method = dtrak(num_draws=2).change(projector=Identity())
    measured, _ = method.measure(as_denoiser(pipeline), Captioned(3), Captioned(2), progress=False)
    count = sum(p.numel() for name, p in pipeline.unet.named_parameters() if ".lora_" in name)
    assert measured.train.shape == (3, count)
    assert all(len(row.nonzero()) > 0.9 * count for row in measured.train)
