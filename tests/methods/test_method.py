"""Methods and presets are their formulas, computed here again from gradients by autograd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import as_matrix
from families import make_conditional_unet
from models import SmallDenoiser, make_images, make_scheduler, make_unet
from score_runs import published_scores
from torch import Tensor, nn

import journey
from journey.curvature.ekfac import fit_ekfac
from journey.generation.noised import noised_trajectory
from journey.generation.trajectory import Trajectory
from journey.measure.draws import Draws, StratifiedDraws, UniformDraws
from journey.measure.measurements import SquaredNorm, TrainingLoss
from journey.methods import PRESETS, baselines, das, dtrak, journey_trak, kfac_influence, trak
from journey.methods.method import Method
from journey.methods.preconditioners import BlockGram, Gram, Plain
from journey.models.condition import Condition, Encoded
from journey.models.conditional import ConditionalDenoiser
from journey.models.denoiser import Denoiser
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch, Gaussian

NUM_TRAIN, NUM_QUERIES = 5, 3
EXACT = {"projector": Identity(), "measurement": TrainingLoss(), "row": "float32", "progress": False}
SCHEDULER = make_scheduler()
TRAIN, QUERIES = make_images(NUM_TRAIN), make_images(NUM_QUERIES, seed=8)


def denoiser(seed: int = 0, prediction_type: str = "epsilon") -> Denoiser:
    return Denoiser(SmallDenoiser(seed), make_scheduler(prediction_type))


def gradient(model: Denoiser, image: Tensor, t: Tensor, noise: Tensor, squared_norm: bool = False) -> Tensor:
    """Gradient of the loss of one draw, by autograd and diffusers alone. [grad_dim]."""
    output = model.network(SCHEDULER.add_noise(image[None], noise[None], t[None]), t[None])
    value = output.square().mean() if squared_norm else F.mse_loss(output, noise[None])
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.network.parameters()))])


def gradients(draws: Draws, images: Tensor, first_id: int, **options: bool) -> Tensor:
    """Of every draw. [num_samples, num_draws, grad_dim]."""
    ids, model = list(range(first_id, first_id + len(images))), denoiser()
    times, noise = draws.timesteps(ids, 100)[:, 0], draws.noise(ids, (1, 8, 8), torch.device("cpu"))[:, 0]
    rows = [
        torch.stack([gradient(model, image, t, e, **options) for t, e in zip(*pair, strict=True)])
        for image, *pair in zip(images, times, noise, strict=True)
    ]
    return torch.stack(rows).double()


def kernel(query: Tensor, train: Tensor, damping: float) -> Tensor:
    gram = train.T @ train
    ridge = damping * gram.trace() / min(train.shape) * torch.eye(len(gram), dtype=gram.dtype)
    return query @ torch.linalg.solve(gram + ridge, train.T)


def assert_scores(found: Tensor, expected: Tensor) -> None:
    """To 1e-4: float32 gradients, times a condition number that damping keeps below a hundred."""
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= 1e-4 * expected.norm()


def run(method: Method, queries: Tensor | Trajectory = QUERIES) -> Tensor:
    return method.change(projector=Identity()).run(denoiser(), TRAIN, queries, progress=False).values


@pytest.mark.parametrize("preset", ["trak", "dtrak"])
def test_trak_and_dtrak_are_the_kernel_of_mean_gradients(preset: str) -> None:
    method = PRESETS[preset]().change(preconditioner=Gram(0.1))
    options = {"squared_norm": preset == "dtrak"}
    train = gradients(method.draws, TRAIN, 0, **options).mean(1)
    query = gradients(method.draws, QUERIES, NUM_TRAIN, **options).mean(1)
    assert_scores(run(method)[:, 0], kernel(query, train, 0.1))


def test_dtrak_is_trak_with_another_measurement() -> None:
    assert isinstance(dtrak().measurement, SquaredNorm)
    assert dtrak().draws == trak().draws


def test_das_weights_normalised_gradients_by_residual_and_leverage() -> None:
    method = das(num_draws=4, squared=False).change(measurement=TrainingLoss())
    train = F.normalize(gradients(method.draws, TRAIN, 0), dim=-1).mean(1)
    query = F.normalize(gradients(method.draws, QUERIES, NUM_TRAIN), dim=-1).mean(1)
    leverages = kernel(train, train, 1.0).diagonal()
    model = denoiser()
    ids = list(range(NUM_TRAIN))
    times, noise = method.draws.timesteps(ids, 100)[:, 0], method.draws.noise(ids, (1, 8, 8), torch.device("cpu"))[:, 0]
    with torch.no_grad():
        losses = torch.stack(
            [
                F.mse_loss(model.network(SCHEDULER.add_noise(x.expand_as(e), e, t), t), e)
                for x, t, e in zip(TRAIN, times, noise, strict=True)
            ]
        )
    expected = kernel(query, train, 1.0) * losses.double().sqrt() / (1 - leverages)
    assert_scores(run(method)[:, 0], expected)
    squared = das(num_draws=4).change(measurement=TrainingLoss())
    assert_scores(run(squared)[:, 0], expected.square())


def test_dmin_compares_equal_timesteps_of_normalised_gradients() -> None:
    method = PRESETS["dmin"]()
    train = F.normalize(gradients(method.draws, TRAIN, 0), dim=-1)
    query = F.normalize(gradients(method.draws, QUERIES, NUM_TRAIN), dim=-1)
    assert_scores(run(method)[:, 0], torch.einsum("qdk,ndk->qn", query, train))


def test_carv_is_a_cosine_of_mean_normalised_gradients_at_shared_draws() -> None:
    method = PRESETS["carv"]()
    train = F.normalize(gradients(method.draws, TRAIN, 0), dim=-1).mean(1)
    query = F.normalize(gradients(method.draws, QUERIES, 1), dim=-1).mean(1)  # any ids: they share one set of draws
    assert_scores(run(method)[:, 0], F.normalize(query, dim=1) @ F.normalize(train, dim=1).T)


def test_kfac_influence_has_the_inverse_curvature_between_mean_gradients() -> None:
    method = kfac_influence(num_draws=4, damping=0.2)
    assert callable(method.projector)
    whitened = method.projector(denoiser(), Encoded.single(TRAIN))
    train, query = gradients(method.draws, TRAIN, 0).mean(1), gradients(method.draws, QUERIES, NUM_TRAIN).mean(1)
    expected, begin = torch.zeros(NUM_QUERIES, NUM_TRAIN, dtype=torch.float64), 0

    def columns(grads: Tensor, p: nn.Parameter) -> Tensor:
        return torch.stack([as_matrix(grad.view(p.shape)).flatten() for grad in grads])

    for name, p in denoiser().network.named_parameters():
        block, part = whitened.curvature.blocks[name], slice(begin, begin + p.numel())
        rows, cols = (
            torch.eye(size, dtype=torch.float64) if vectors is None else vectors.double()
            for size, vectors in zip(block.eigenvalues.shape, (block.outputs, block.inputs), strict=True)
        )
        vectors, values = torch.kron(rows, cols), block.eigenvalues.double().flatten()
        inverse = vectors @ torch.diag(1 / (values + 0.2 * values.mean())) @ vectors.T
        expected += columns(query[:, part], p) @ inverse @ columns(train[:, part], p).T
        begin = part.stop
    found = method.change(projector=replace(whitened, inner=Identity())).run(denoiser(), TRAIN, QUERIES, progress=False)
    assert_scores(found.values[:, 0], expected)


@pytest.mark.parametrize("name", ["tracin", "diffusion_retrac"])
def test_tracin_is_the_inner_product_and_retrac_that_of_unit_vectors(name: str) -> None:
    method = PRESETS[name]()
    train, query = gradients(method.draws, TRAIN, 0).mean(1), gradients(method.draws, QUERIES, NUM_TRAIN).mean(1)
    if name == "diffusion_retrac":
        train, query = F.normalize(train, dim=1), F.normalize(query, dim=1)
    assert_scores(run(method)[:, 0], query @ train.T)


def test_journey_trak_is_the_librarys_score_at_every_step(tmp_path_factory: pytest.TempPathFactory) -> None:
    model, draws = denoiser(), UniformDraws(4, antithetic=False)
    trajectory = noised_trajectory(model, QUERIES, (80, 40, 10))
    found = run(journey_trak(num_draws=4).change(preconditioner=Gram(0.1)), trajectory)
    out = tmp_path_factory.mktemp("features")
    features = journey.featurize(model, list(TRAIN), out, draws=draws, **EXACT)
    assert_scores(found, published_scores(features, trajectory, damping=0.1, num_draws=4))


def test_a_conditional_model_is_told_at_each_draw_what_featurize_tells_it(tmp_path: Path) -> None:
    def encode(prompts: list[str]) -> Tensor:
        return torch.stack([torch.full((2, 6), len(prompt) / 4) for prompt in prompts])

    torch.manual_seed(0)
    model = ConditionalDenoiser(make_conditional_unet(1, 6, 8), make_scheduler(), encode_prompt=encode)
    captions = [["a"], ["a pear", "a green pear"], ["", "one", "two apples"]]
    dataset = [{"image": x, "caption": some} for x, some in zip(TRAIN, captions, strict=False)]
    told = Condition({"encoder_hidden_states": encode(["pear", "apples", "b"])})
    trajectory = Trajectory(torch.tensor([40]), QUERIES[:, None], QUERIES[:, None], QUERIES, told)
    draws = UniformDraws(4, antithetic=False)
    features = journey.featurize(model, dataset, tmp_path, draws=draws, **EXACT)
    expected = published_scores(features, trajectory, damping=0.1, num_draws=4)
    method = journey_trak(num_draws=4).change(projector=Identity(), preconditioner=Gram(0.1))
    found = method.run(model, dataset, trajectory, progress=False)
    assert_scores(found.values, expected)


def test_kfac_influence_tells_the_network_what_belongs_to_each_image() -> None:
    model = ConditionalDenoiser(make_unet(num_class_embeds=3), make_scheduler(), name="class_labels")
    labels = torch.tensor([2, 0, 1, 2, 0])
    make = kfac_influence(num_draws=4).projector
    assert callable(make)
    found = make(model, Encoded.single(TRAIN, Condition({"class_labels": labels})))
    draws = StratifiedDraws(2, antithetic=False)
    expected = fit_ekfac(model, TRAIN, draws=draws, condition=Condition({"class_labels": labels}), progress=False)
    assert found.curvature.fingerprint() == expected.fingerprint()


def test_checkpoints_are_averaged() -> None:
    method = PRESETS["tracin"]().change(projector=Identity())
    networks = [SmallDenoiser(seed) for seed in (0, 1)]
    both = method.run(denoiser(), TRAIN, QUERIES, checkpoints=networks, progress=False).values
    alone = [method.run(Denoiser(net, SCHEDULER), TRAIN, QUERIES, progress=False).values for net in networks]
    assert torch.allclose(both, (alone[0] + alone[1]) / 2, rtol=1e-5)


def test_a_factor_on_all_features_cancels_but_for_a_rescaled_inverse_where_it_is_squared() -> None:
    query, train = torch.randn(2, 7), torch.randn(4, 7)
    for rescaled, factor in ((False, 1.0), (True, 9.0)):
        gram = Gram(0.2, rescaled)
        found, _ = gram.scores(3 * query, 3 * train, torch.zeros(4), [7])
        expected, _ = gram.scores(query, train, torch.zeros(4), [7])
        # To the rounding of the tripled features.
        assert torch.allclose(found, factor * expected, rtol=1e-5, atol=1e-6)


def test_a_block_gram_adds_the_kernels_of_its_blocks() -> None:
    query, train = torch.randn(2, 7), torch.randn(4, 7)
    found, _ = BlockGram(0.2).scores(query, train, torch.zeros(4), [3, 4])
    expected = sum(kernel(query[:, part].double(), train[:, part].double(), 0.2) for part in (slice(3), slice(3, 7)))
    assert torch.allclose(found, expected)
    with pytest.raises(ValueError, match="add up"):
        BlockGram(0.2).scores(query, train, torch.zeros(4), [3, 3])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_and_tells_queries_and_images_apart(name: str) -> None:
    method = PRESETS[name]()
    if isinstance(method.projector, Gaussian):
        method = method.change(projector=CountSketch(64))
    scores = method.run(denoiser(), TRAIN, QUERIES, progress=False)
    assert scores.values.shape == (NUM_QUERIES, 10 if method.at_steps else 1, NUM_TRAIN)
    assert torch.isfinite(scores.values).all()
    assert scores.values.std(0).min() > 0
    assert scores.values.std(2).min() > 0
    assert method.reference


def test_a_step_that_was_not_recorded_is_refused() -> None:
    trajectory = noised_trajectory(denoiser(), QUERIES, (80, 40))
    with pytest.raises(ValueError, match="recorded timesteps"):
        journey_trak().change(projector=Identity()).run(denoiser(), TRAIN, trajectory, steps=[30], progress=False)


def test_draws_kept_apart_cannot_be_asked_at_a_step() -> None:
    with pytest.raises(ValueError, match="concatenated"):
        PRESETS["dmin"]().change(at_steps=True)


def test_pixels_score_by_centred_inner_products() -> None:
    train, query = TRAIN.flatten(1).double(), QUERIES.flatten(1).double()
    expected = (query - train.mean(0)) @ (train - train.mean(0)).T
    assert torch.allclose(baselines.pixels(TRAIN, QUERIES), expected)
    cosine = baselines.pixels(TRAIN, TRAIN, cosine=True)
    assert torch.allclose(cosine.diagonal(), torch.ones(NUM_TRAIN, dtype=torch.float64))


@pytest.mark.parametrize("patch", [None, 3])
def test_optimal_denoiser_weights_sum_to_one_and_prefer_the_image_itself(patch: int | None) -> None:
    weights = baselines.optimal_denoiser(denoiser(), TRAIN, TRAIN, patch=patch, timesteps=[10, 30])
    assert torch.allclose(weights.sum(1), torch.ones(NUM_TRAIN, dtype=torch.float64))
    assert torch.equal(weights.argmax(1), torch.arange(NUM_TRAIN))


def test_optimal_denoiser_weights_are_the_posterior_of_whole_images() -> None:
    model = denoiser()
    found = baselines.optimal_denoiser(model, TRAIN, QUERIES[:1], patch=None, timesteps=[50], num_draws=1)
    from journey.ops.noise import query_noise

    noise = query_noise(0, [0], 50, 1, (1, 8, 8), torch.device("cpu"))[0, 0].double()
    abar = SCHEDULER.alphas_cumprod[50].double()
    x_t = abar.sqrt() * QUERIES[0] + (1 - abar).sqrt() * noise
    likelihoods = torch.stack([-(x_t - abar.sqrt() * x).square().sum() / (2 * (1 - abar)) for x in TRAIN]).softmax(0)
    # x_t is rounded to float32 before it is squared.
    assert torch.allclose(found[0], likelihoods, atol=1e-4)


def test_plain_scores_are_inner_products() -> None:
    query, train = torch.randn(2, 3), torch.randn(4, 3)
    assert torch.allclose(Plain().scores(query, train, torch.zeros(4), [3])[0], (query @ train.T).double(), atol=1e-6)
