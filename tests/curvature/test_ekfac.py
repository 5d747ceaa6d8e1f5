"""EK-FAC is the explicit Gauss-Newton matrix where it is exact, and its best diagonal in its bases where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from curvature_models import PIXELS, Odd, OneLayer, Square, Stack
from models import SmallDenoiser, make_images, make_scheduler, make_unet
from torch import Tensor, nn

import journey
from journey.curvature import ekfac
from journey.curvature.blocks import EigenBlock
from journey.curvature.ekfac import fit_ekfac
from journey.curvature.pseudo_gradients import PseudoGradients
from journey.curvature.whitened import Curvature, Whitened
from journey.errors import NonFiniteGradientError, StoreMismatchError
from journey.measure.draws import Draws, GridDraws, StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.importance_draws import ImportanceDraws
from journey.measure.measurements import TrainingLoss
from journey.measure.shared_draws import SharedDraws
from journey.models.condition import Condition
from journey.models.conditional import ConditionalDenoiser
from journey.models.denoiser import Denoiser
from journey.projectors.base import ParameterSlot
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch

IMAGES, DRAWS = make_images(3), StratifiedDraws(num_draws=2)


def noised(model: Denoiser, draws: Draws = DRAWS) -> tuple[Tensor, Tensor]:
    """All draws of the images and their timesteps. [num_rows, 1, 8, 8], [num_rows]."""
    ids = list(range(len(IMAGES)))
    times = draws.timesteps(ids, 100).flatten()
    noise = draws.noise(ids, (1, 8, 8), torch.device("cpu")).flatten(0, 2)
    return model.scheduler.add_noise(IMAGES.repeat_interleave(draws.num_draws, 0), noise, times), times


def explicit(model: Denoiser, draws: Draws = DRAWS) -> dict[str, Tensor]:
    """The diagonal blocks of ``mean of J^T (2 / D) J``, by Jacobians in float64. [numel, numel] for each parameter."""
    x_t, times = noised(model, draws)
    counts = draws.row_weights(times.view(len(IMAGES), draws.bins, -1), 100)
    roots = torch.ones(len(times), 1, 1) if counts is None else counts.double().sqrt().view(-1, 1, 1)
    weights = {name: p.detach().double() for name, p in model.network.named_parameters()}
    wanted = {name for name, p in model.network.named_parameters() if p.requires_grad}

    def output(chosen: dict[str, Tensor]) -> Tensor:
        found: Tensor = torch.func.functional_call(model.network, {**weights, **chosen}, (x_t.double(), times))
        return found.flatten()

    jacobians = torch.func.jacrev(output)({name: weights[name] for name in wanted})
    jacobians = {name: j.movedim(2, -1) if j.dim() > 2 else j for name, j in jacobians.items()}  # as the matrix has it
    rows = {name: roots * jacobian.reshape(len(times), PIXELS, -1) for name, jacobian in jacobians.items()}
    flat = {name: jacobian.flatten(0, 1) for name, jacobian in rows.items()}
    return {name: 2 / PIXELS / len(times) * j.T @ j for name, j in flat.items()}


def basis(block: EigenBlock) -> Tensor:
    """Eigenvectors of the flattened parameter, as columns. [numel, numel]."""
    rows, cols = block.eigenvalues.shape
    outputs = torch.eye(rows) if block.outputs is None else block.outputs
    inputs = torch.eye(cols) if block.inputs is None else block.inputs
    return torch.kron(outputs.double(), inputs.double())


def matrix(block: EigenBlock) -> Tensor:
    """The curvature that a block stands for. [numel, numel]."""
    vectors = basis(block)
    return vectors @ torch.diag(block.eigenvalues.double().flatten()) @ vectors.T


def assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    """To 1e-5 of the norm: float32 gradients and bases, sums in float64."""
    assert expected.norm() > 0, what
    assert (found.double() - expected).norm() <= 1e-5 * expected.norm(), what


def fit(network: nn.Module, **options: object) -> tuple[Denoiser, Curvature]:
    model = Denoiser(network, make_scheduler())
    chosen = {"draws": DRAWS, "exact": True, "progress": False, **options}
    return model, fit_ekfac(model, IMAGES, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("network", [OneLayer, Square])
def test_a_layer_with_independent_factors_has_its_exact_curvature(network: type[Stack]) -> None:
    model, curvature = fit(network())
    wanted = explicit(model)
    assert curvature.blocks.keys() == wanted.keys()
    for name, block in curvature.blocks.items():
        assert_close(matrix(block), wanted[name], name)


@pytest.mark.parametrize("network", [SmallDenoiser, Odd])
def test_eigenvalues_are_the_diagonal_of_the_explicit_curvature_in_the_bases(network: type[nn.Module]) -> None:
    model, curvature = fit(network())
    for name, wanted in explicit(model).items():
        vectors = basis(curvature.blocks[name])
        assert_close(curvature.blocks[name].eigenvalues.flatten(), (vectors.T @ wanted @ vectors).diagonal(), name)


def test_vectors_have_their_exact_block() -> None:
    model, curvature = fit(SmallDenoiser())
    for name in ("inward.bias", "norm.weight", "outward.bias"):
        assert_close(matrix(curvature.blocks[name]), explicit(model)[name], name)


def test_importance_draws_count_by_their_weights() -> None:
    draws = ImportanceDraws(2, density=range(1, 101))
    model, curvature = fit(SmallDenoiser(), draws=draws)
    wanted = explicit(model, draws)
    for name in ("inward.bias", "time.bias"):
        assert_close(matrix(curvature.blocks[name]), wanted[name], name)
    vectors = basis(curvature.blocks["inward.weight"])
    diagonal = (vectors.T @ wanted["inward.weight"] @ vectors).diagonal()
    assert_close(curvature.blocks["inward.weight"].eigenvalues.flatten(), diagonal, "weight")


def test_a_vector_too_long_for_a_block_has_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ekfac, "_LARGEST_EXACT", 7)
    model, curvature = fit(SmallDenoiser())
    block = curvature.blocks["inward.bias"]
    assert block.inputs is None
    assert_close(block.eigenvalues[0], explicit(model)["inward.bias"].diagonal(), "diagonal")


def test_bases_of_a_convolution_diagonalise_the_moments_of_patches_and_of_output_gradients() -> None:
    model, curvature = fit(SmallDenoiser())
    x_t, times = noised(model)
    patches = F.unfold(x_t.double(), 3, padding=1).transpose(1, 2).reshape(-1, 9)
    network = SmallDenoiser().double()
    kept: list[Tensor] = []
    network.inward.register_forward_hook(lambda module, args, output: kept.append(output))
    output = network(x_t.double(), times).flatten(1)
    outputs = torch.zeros(8, 8, dtype=torch.float64)
    for pixel in range(PIXELS):
        (g,) = torch.autograd.grad(output[:, pixel].sum(), kept[0], retain_graph=True)
        outputs += torch.einsum("nihw,njhw->ij", g, g)
    for moments, vectors in (
        (patches.T @ patches, curvature.blocks["inward.weight"].inputs),
        (outputs, curvature.blocks["inward.weight"].outputs),
    ):
        assert vectors is not None
        rotated = vectors.double().T @ moments @ vectors.double()
        assert (rotated - rotated.diagonal().diag()).norm() <= 1e-5 * moments.norm()
        off_diagonal = moments - moments.diagonal().diag()
        assert off_diagonal.norm() > 0.1 * moments.norm(), "the moments are diagonal anyway: nothing was proved"


def test_sampled_directions_have_the_exact_trace_on_average() -> None:
    draws = StratifiedDraws(num_draws=128)
    model = Denoiser(Square(), make_scheduler())
    exact, sampled = (
        fit_ekfac(model, IMAGES, draws=draws, progress=False, exact=exact).blocks["layer.weight"].eigenvalues.sum()
        for exact in (True, False)
    )
    # A Gaussian quadratic form has a variance of at most twice its squared mean.
    assert abs(sampled / exact - 1) < 5 * (2 / (128 * len(IMAGES))) ** 0.5
    assert sampled != exact


def test_the_network_is_told_what_belongs_to_each_image() -> None:
    network = make_unet(num_class_embeds=4)
    model = ConditionalDenoiser(network, make_scheduler(), name="class_labels")
    told = Condition({"class_labels": torch.tensor([2, 0, 2])})
    curvature = fit_ekfac(model, IMAGES, draws=DRAWS, condition=told, select="class_embedding.*", progress=False)
    seen = curvature.blocks["class_embedding.weight"].eigenvalues.sum(1)
    assert (seen > 0).tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match="a row for each of the 3 images, got 2"):
        fit_ekfac(model, IMAGES, draws=DRAWS, condition=told.select([0, 1]))


def test_every_image_and_draw_has_a_direction_of_its_own() -> None:
    model, images = Denoiser(SmallDenoiser(), make_scheduler()), IMAGES[:1].repeat(3, 1, 1, 1)
    draws = SharedDraws(GridDraws(num_draws=2), one_noise=True)  # so that predictions of the images are equal
    batches = PseudoGradients(model, images, draws, None, False, 0)
    (values,) = batches.pseudo_losses(torch.arange(6))
    assert len(set(values(slice(0, 6)).tolist())) == 6
    (part,) = batches.pseudo_losses(torch.arange(3, 5))  # the same, whatever the batch
    assert torch.allclose(part(slice(0, 2)), values(slice(3, 5)), rtol=1e-5)


def test_scores_are_the_influence_function() -> None:
    damping = 0.3
    model, curvature = fit(Square())
    whitened, plain = (
        Featurizer(model, measurement=TrainingLoss(), projector=projector)
        for projector in (Whitened(Identity(), curvature, damping), Identity())
    )
    ids = list(range(len(IMAGES)))
    times, noise = DRAWS.timesteps(ids, 100), DRAWS.noise(ids, (1, 8, 8), torch.device("cpu"))
    features, grads = (f.features(IMAGES, times, noise)[0][:, 0].double() for f in (whitened, plain))
    ggn = explicit(model)["layer.weight"]
    ridge = damping * ggn.trace() / len(ggn) * torch.eye(len(ggn), dtype=torch.float64)
    expected = grads @ torch.linalg.solve(ggn + ridge, grads.T)
    assert_close(features @ features.T, expected, "scores")
    assert not torch.allclose(expected, expected.diagonal().diag(), atol=1e-3), "images that have nothing in common"


def test_whitening_divides_every_parameter_by_the_root_of_its_damped_curvature() -> None:
    _, curvature = fit(Odd())
    for name, block in curvature.blocks.items():
        slot = ParameterSlot(name, *block.eigenvalues.shape, 0)
        grads = torch.randn(2, slot.rows, slot.cols, generator=torch.Generator().manual_seed(1))
        features = torch.zeros(2, block.eigenvalues.numel())
        for row in range(0, slot.rows, 3):  # in tiles of rows
            Whitened(Identity(), curvature, 0.1).add_(features, slot, grads[:, row : row + 3], row)
        dense = matrix(block)
        ridge = 0.1 * dense.trace() / len(dense) * torch.eye(len(dense), dtype=torch.float64)
        flat = grads.flatten(1).double()
        assert_close(features.double() @ features.double().T, flat @ torch.linalg.solve(dense + ridge, flat.T), name)


def test_a_parameter_that_the_output_does_not_depend_on_gives_zero() -> None:
    slot = ParameterSlot("w", 2, 3, 0)
    curvature = Curvature({"w": EigenBlock(torch.zeros(2, 3), torch.eye(2), torch.eye(3))})
    features = torch.zeros(1, 6)
    Whitened(Identity(), curvature).add_(features, slot, torch.ones(1, 2, 3))
    assert torch.equal(features, torch.zeros(1, 6))


def test_neither_batches_nor_saving_change_the_curvature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, curvature = fit(SmallDenoiser(), exact=False)
    assert fit(SmallDenoiser(), exact=False)[1].fingerprint() == curvature.fingerprint()
    assert fit(SmallDenoiser(), exact=False, seed=1)[1].fingerprint() != curvature.fingerprint()
    curvature.save(tmp_path / "curvature.safetensors")
    assert Curvature.load(tmp_path / "curvature.safetensors").fingerprint() == curvature.fingerprint()
    monkeypatch.setattr(ekfac, "_ROWS_PER_BATCH", 4)  # cuts the draws of an image
    _, other = fit(SmallDenoiser(), exact=False)
    for name, block in curvature.blocks.items():
        assert_close(matrix(other.blocks[name]), matrix(block), name)


def test_a_store_of_whitened_features_belongs_to_its_curvature_and_damping(tmp_path: Path) -> None:
    model, curvature = fit(SmallDenoiser(), exact=False)
    projector = Whitened(CountSketch(32), curvature, 0.1)

    def store(projector: Whitened) -> Tensor:
        return journey.featurize(
            model,
            list(IMAGES),
            tmp_path,
            measurement=TrainingLoss(),
            draws=DRAWS,
            projector=projector,
            row="float32",
            progress=False,
        ).matrix()

    found = store(projector)
    times, noise = DRAWS.timesteps([0, 1, 2], 100), DRAWS.noise([0, 1, 2], (1, 8, 8), torch.device("cpu"))
    expected, _ = Featurizer(model, measurement=TrainingLoss(), projector=projector).features(IMAGES, times, noise)
    assert torch.allclose(found, expected[:, 0], atol=1e-5 * expected.norm().item())
    with pytest.raises(StoreMismatchError):
        store(Whitened(CountSketch(32), curvature, 0.2))


def test_the_curvature_of_another_model_is_refused() -> None:
    _, curvature = fit(SmallDenoiser(), select="inward.*")
    assert set(curvature.blocks) == {"inward.weight", "inward.bias"}
    slot = ParameterSlot("outward.weight", 1, 72, 0)
    with pytest.raises(ValueError, match=r"block for 'outward.weight' of shape \[1, 72\], got none"):
        Whitened(CountSketch(32), curvature).add_(torch.zeros(1, 32), slot, torch.zeros(1, 1, 72))
    with pytest.raises(ValueError, match="got one of shape"):
        Whitened(CountSketch(32), curvature).add_(torch.zeros(1, 32), ParameterSlot("inward.bias", 1, 9, 0), slot)  # type: ignore[arg-type]


def test_arguments_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="damping must be positive, got 0"):
        Whitened(Identity(), Curvature({}), 0)
    with pytest.raises(ValueError, match="images must not be empty"):
        fit_ekfac(Denoiser(SmallDenoiser(), make_scheduler()), IMAGES[:0])
    Curvature({"w": EigenBlock(torch.zeros(1, 1), None, None)}).save(tmp_path / "w")
    network = SmallDenoiser()
    with torch.no_grad():
        network.outward.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteGradientError, match=r"curvature of 'inward\.weight' is NaN"):
        fit(network)
