"""Adapters of videos, as trainers on the original networks write them: taken with their scale, or refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import add_adapter, save
from families import make_family
from flow_families import make_quiet
from models import assert_same_gradients
from torch import Tensor, nn
from video_families import VIDEO, VIDEOS

import journey
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import TrainingLoss
from journey.models.checkpoints import loaded
from journey.models.load import as_denoiser
from journey.models.lora_files import load_lora
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch

RANK, ALPHA = 3, 1.0

# Layers of diffusers' Wan by those of the original.
LAYERS = {
    f"{theirs}.{x}": f"{ours}.to_{x}"
    for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for x in "qkv"
}
LAYERS |= {
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}

# What stands before a layer, what its two matrices are called, and whether its name is joined by underscores.
SPELLINGS = {
    "ComfyUI": ("diffusion_model.", "lora_A", "lora_B", False),
    "ComfyUI, down and up": ("diffusion_model.", "lora_down", "lora_up", False),
    "musubi-tuner": ("lora_unet_", "lora_down", "lora_up", True),
}


def matrices(network: nn.Module, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Random ones for each layer, by the original's names."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for block in range(2):
        for theirs, ours in LAYERS.items():
            rows, cols = network.get_submodule(f"blocks.{block}.{ours}").weight.shape
            down, up = torch.randn(RANK, cols, generator=generator), torch.randn(rows, RANK, generator=generator)
            found[f"blocks.{block}.{theirs}"] = (0.3 * down, 0.3 * up)
    return found


def write(path: Path, spelling: str, found: dict[str, tuple[Tensor, Tensor]], **more: Tensor) -> Path:
    prefix, down, up, joined = SPELLINGS[spelling]
    tensors = {}
    for name, pair in found.items():
        layer = prefix + (name.replace(".", "_") if joined else name)
        tensors |= {f"{layer}.{down}.weight": pair[0], f"{layer}.{up}.weight": pair[1]}
        tensors[f"{layer}.alpha"] = torch.tensor(ALPHA)
    return save({**tensors, **more}, path)


def added(network: Any) -> dict[str, Tensor]:
    """What the network's only adapter adds to each weight, by the layer's name."""
    layers = {name: layer for name, layer in network.named_modules() if len(getattr(layer, "lora_A", ()))}
    return {name: layer.get_delta_weight(next(iter(layer.lora_A))) for name, layer in layers.items()}


def assert_added(network: nn.Module, found: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Hold an adapter to its matrices, scaled by ``alpha / rank``."""
    adapter = added(network)
    assert len(adapter) == len(found)
    for name, (down, up) in found.items():
        block, theirs = name.split(".", 2)[1:]
        ours = adapter[f"blocks.{block}.{LAYERS[theirs]}"]
        torch.testing.assert_close(ours, ALPHA / RANK * up @ down, rtol=1e-5, atol=1e-6)


def gradients(pipeline: Any, name: str) -> tuple[Tensor, Tensor]:
    """Those that are measured of two videos, and those that autograd gives of one at a time."""
    denoiser, dataset = as_denoiser(pipeline), VIDEOS[name].dataset(2)
    encoded = denoiser.encode([dataset[i] for i in range(2)], [0, 1])
    timesteps, told = torch.tensor([[[5, 950]], [[300, 999]]]), encoded.condition
    noise = torch.randn(2, 1, 2, *encoded.x0.shape[1:], generator=torch.Generator().manual_seed(3))
    featurizer = Featurizer(denoiser, measurement=TrainingLoss(), projector=Identity())
    measured, _ = featurizer.features(encoded.x0, timesteps, noise, condition=told, check=True)
    parameters = [p for p in denoiser.network.parameters() if p.requires_grad]
    rows = []
    for i in range(2):
        loss = torch.zeros(())
        for k in range(2):
            x0, drawn, t = encoded.x0[i : i + 1], noise[i, :, k], timesteps[i, 0, k : k + 1]
            noisy = denoiser.add_noise(x0, drawn, t)
            loss = loss + (denoiser.predict(noisy, t, told.select([i])) - (drawn - x0)).square().mean() / 2
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = zip(grads, parameters, strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    return measured[:, 0], torch.stack(rows)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_adapter_in_the_names_of_the_original_has_its_scale_and_autograds_gradients(
    spelling: str, tmp_path: Path
) -> None:
    pipeline = make_quiet(VIDEOS["Wan 2.1"])
    found = matrices(pipeline.transformer)
    load_lora(pipeline, write(tmp_path / "mine.safetensors", spelling, found))
    assert_added(pipeline.transformer, found)
    assert_same_gradients(pipeline.transformer, *gradients(pipeline, "Wan 2.1"))


def test_tensors_in_memory_are_the_same_however_often_they_are_put_in_place(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    pipeline = make_quiet(VIDEOS["Wan 2.1"])
    load_lora(pipeline, write(tmp_path / "a.safetensors", "ComfyUI", matrices(pipeline.transformer)))
    other = matrices(pipeline.transformer, seed=1)
    tensors = load_file(write(tmp_path / "b.safetensors", "ComfyUI", other))
    for _ in range(2):  # diffusers scales some of them in place
        with loaded(pipeline.transformer, tensors):
            assert_added(pipeline.transformer, other)


@pytest.mark.parametrize("prefix", ["lora_unet_", "transformer.", "diffusion_model.", "base_model.model."])
@pytest.mark.parametrize("name", ["LTX", "HunyuanVideo"])
def test_an_adapter_in_the_names_of_diffusers_is_taken_with_any_prefix(name: str, prefix: str, tmp_path: Path) -> None:
    pipeline = make_quiet(VIDEOS[name])
    layer = f"transformer_blocks.0.{'attn1' if name == 'LTX' else 'attn'}.to_q"
    rows, cols = pipeline.transformer.get_submodule(layer).weight.shape
    down, up = torch.randn(2, cols), torch.randn(rows, 2)
    spelled = prefix + (layer.replace(".", "_") if prefix == "lora_unet_" else layer)
    tensors = {f"{spelled}.lora_down.weight": down, f"{spelled}.lora_up.weight": up}
    load_lora(pipeline, save({**tensors, f"{spelled}.alpha": torch.tensor(1.0)}, tmp_path / "mine.safetensors"))
    torch.testing.assert_close(added(pipeline.transformer)[layer], up @ down / 2)


def test_what_diffusers_leaves_out_of_a_file_is_named(tmp_path: Path) -> None:
    pipeline = make_quiet(VIDEOS["Wan 2.1"])
    found, norm = matrices(pipeline.transformer), "diffusion_model.blocks.0.norm3.diff"
    path = write(tmp_path / "mine.safetensors", "ComfyUI", found, **{norm: torch.ones(24)})
    with pytest.raises(
        ValueError, match=r"diffusers leaves out 1 tensors .* such as diffusion_model\.blocks\.0\.norm3"
    ):
        load_lora(pipeline, path)
    pipeline = make_quiet(VIDEOS["Wan 2.1"])  # zeros change nothing
    load_lora(pipeline, write(tmp_path / "zeros.safetensors", "ComfyUI", found, **{norm: torch.zeros(24)}))


REFUSED = {
    "lora_unet_blocks_0_self_attn_q": "the spelling of kohya's .* convert_lora.py --target other",
    "lycoris_blocks_0_self_attn_q": "the spelling of LyCORIS",
    "diffusion_model.blocks.0.attention.q": "the spelling of ComfyUI",
    "blocks.0.attention.q": "nothing in it is called as a layer of the network, such as patch_embedding|blocks.0",
}


@pytest.mark.parametrize("layer", REFUSED)
def test_a_spelling_that_nothing_converts_is_named_with_the_first_keys(layer: str, tmp_path: Path) -> None:
    tensors = {f"{layer}.lora_down.weight": torch.ones(2, 24), f"{layer}.lora_up.weight": torch.ones(24, 2)}
    path = save(tensors, tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=rf"mine\.safetensors was not read .* begins with {layer}\.lora_down") as error:
        load_lora(make_quiet(VIDEOS["Wan 2.1"]), path)
    assert error.match(REFUSED[layer])


def test_a_file_that_trips_diffusers_converter_is_refused_in_words(tmp_path: Path) -> None:
    layer = "lora_unet_single_blocks_0_linear1"  # of a size that no published Flux has
    tensors = {f"{layer}.lora_down.weight": torch.ones(2, 32), f"{layer}.lora_up.weight": torch.ones(224, 2)}
    path = save({**tensors, f"{layer}.alpha": torch.tensor(1.0)}, tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=r"mine\.safetensors was not read .* begins with lora_unet_.*AssertionError"):
        load_lora(make_family("Flux"), path)
    pipeline = make_family("Flux")
    add_adapter(pipeline.transformer, targets=["attn.to_q"])
    with pytest.raises(ValueError, match="checkpoint does not fit the adapter"), loaded(pipeline.transformer, path):
        pass
    alone = save({"diffusion_model.blocks.0.cross_attn.q.alpha": torch.tensor(1.0)}, tmp_path / "alone.safetensors")
    with pytest.raises(
        ValueError, match=r"alone\.safetensors was not read as an adapter .* begins with diffusion_model"
    ):
        load_lora(make_quiet(VIDEOS["Wan 2.1"]), alone)


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[Any, list[Path]]:
    """Two networks with an adapter each, and two files with others."""
    pipeline = make_quiet(VIDEOS["Wan 2.2"])
    paths = [
        write(tmp_path / f"{seed}.safetensors", spelling, matrices(pipeline.transformer, seed))
        for seed, spelling in enumerate(("ComfyUI", "musubi-tuner") * 2)
    ]
    load_lora(pipeline, *paths[:2])
    return pipeline, paths[2:]


def test_two_networks_take_two_adapters(adapted: tuple[Any, list[Path]]) -> None:
    pipeline, _ = adapted
    assert_added(pipeline.transformer, matrices(pipeline.transformer, 0))
    assert_added(pipeline.transformer_2, matrices(pipeline.transformer, 1))
    assert_same_gradients(as_denoiser(pipeline).network, *gradients(pipeline, "Wan 2.2"))


def as_folder(paths: list[Path]) -> Path:
    for path, name in zip(paths, ("transformer", "transformer_2"), strict=True):
        (path.parent / "run" / name).mkdir(parents=True)
        path.rename(path.parent / "run" / name / "pytorch_lora_weights.safetensors")
    return paths[0].parent / "run"


@pytest.mark.parametrize("form", ["mapping", "folder"])
def test_a_checkpoint_of_two_networks_is_one_for_each(adapted: tuple[Any, list[Path]], form: str) -> None:
    pipeline, paths = adapted
    network = as_denoiser(pipeline).network
    both = {"transformer": paths[0], "transformer_2": str(paths[1])}
    with loaded(network, both if form == "mapping" else as_folder(paths)):
        assert_added(pipeline.transformer, matrices(pipeline.transformer, 2))
        assert_added(pipeline.transformer_2, matrices(pipeline.transformer, 3))
    assert_added(pipeline.transformer, matrices(pipeline.transformer, 0))
    assert_added(pipeline.transformer_2, matrices(pipeline.transformer, 1))


def test_what_a_checkpoint_of_two_networks_leaves_out_stays(adapted: tuple[Any, list[Path]], tmp_path: Path) -> None:
    pipeline, paths = adapted
    network = as_denoiser(pipeline).network
    state = {name: tensor + 1 for name, tensor in network.state_dict().items() if ".lora_" in name}
    with loaded(network, {"transformer_2": paths[1]}):
        assert_added(pipeline.transformer, matrices(pipeline.transformer, 0))
        assert_added(pipeline.transformer_2, matrices(pipeline.transformer, 3))
    with loaded(network, state):  # in memory, by the names of both
        now = network.state_dict()
        assert all(torch.equal(now[name], tensor) for name, tensor in state.items())
    options = {"projector": CountSketch(64), "draws": StratifiedDraws(num_draws=2), "progress": False}
    found = journey.featurize(
        pipeline,
        VIDEOS["Wan 2.2"].dataset(2),
        tmp_path / "f",
        checkpoints=[None, {"transformer_2": paths[1]}],
        **options,
    )
    assert not torch.equal(found.matrix(0), found.matrix(1))


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused(adapted: tuple[Any, list[Path]]) -> None:
    pipeline, paths = adapted
    network = as_denoiser(pipeline).network
    for checkpoint, told in (
        (paths[0], "begins with"),
        ({"high": paths[0]}, "files for high"),
        (nn.Linear(1, 1), "Linear"),
    ):
        with (
            pytest.raises(ValueError, match=rf"must say which weights are whose, got .*{told}.*: give a folder"),
            loaded(network, checkpoint),
        ):
            pass
    with (
        pytest.raises(ValueError, match="checkpoint of one network must be one set of weights, got files for"),
        loaded(pipeline.transformer, {"transformer": paths[0]}),
    ):
        pass


@pytest.mark.parametrize("coarse", ["transformer", "transformer_2"])
def test_two_networks_may_compute_in_two_dtypes(coarse: str) -> None:
    pipeline = make_quiet(VIDEOS["Wan 2.2"])
    for network in (pipeline.transformer, pipeline.transformer_2):
        for name, p in network.named_parameters():
            p.requires_grad_("attn1.to_q" in name)
    fine, _ = gradients(pipeline, "Wan 2.2")
    getattr(pipeline, coarse).to(torch.bfloat16)
    assert as_denoiser(pipeline).dtype == torch.float32
    mixed, _ = gradients(pipeline, "Wan 2.2")
    first = sum(p.numel() for p in pipeline.transformer.parameters() if p.requires_grad)
    high, low = (slice(0, first), slice(first, None))
    same, rounded = (low, high) if coarse == "transformer" else (high, low)
    assert torch.equal(mixed[:, same], fine[:, same])
    assert not torch.equal(mixed[:, rounded], fine[:, rounded])
    torch.testing.assert_close(mixed, fine, rtol=0, atol=3e-2 * fine.abs().max().item())  # bfloat16
    trajectory = journey.record(pipeline, prompt="two", num_inference_steps=4, size=VIDEO, progress=False)
    assert trajectory.x_t.isfinite().all()
