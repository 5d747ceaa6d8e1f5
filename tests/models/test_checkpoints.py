"""A checkpoint's weights are in the network for as long as they are asked for, and its own come back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline
from models import SmallDenoiser, make_scheduler, make_unet
from safetensors.torch import save_file
from torch import Tensor, nn

from journey.models.checkpoints import as_checkpoints, loaded


def weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are equal, bit by bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def save_weights(folder: Path, network: nn.Module) -> Path:
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


FORMS: dict[str, Callable[[Path, nn.Module], Any]] = {
    "state dict": lambda folder, network: network.state_dict(),
    "module": lambda folder, network: network,
    "file": save_weights,
    "file in words": lambda folder, network: str(save_weights(folder, network)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_is_in_place_inside_and_gone_outside(tmp_path: Path, form: str) -> None:
    network, other = SmallDenoiser(0), SmallDenoiser(1)
    before = weights(network)
    with loaded(network, FORMS[form](tmp_path, other)):
        assert same(weights(network), weights(other))
        assert not same(weights(network), before)
    assert same(weights(network), before)
    assert same(weights(other), weights(SmallDenoiser(1))), "the checkpoint itself was changed"


@pytest.mark.parametrize("whole_pipeline", [True, False])
def test_a_folder_that_diffusers_saved_is_a_checkpoint(tmp_path: Path, whole_pipeline: bool) -> None:
    network, other = make_unet(0), make_unet(1)
    (DDPMPipeline(other, make_scheduler()) if whole_pipeline else other).save_pretrained(tmp_path)
    with loaded(network, tmp_path):
        assert same(weights(network), weights(other))


def test_no_checkpoint_leaves_the_weights_alone() -> None:
    network = SmallDenoiser(0)
    before = weights(network)
    with loaded(network, None):
        assert same(weights(network), before)


def test_the_own_weights_come_back_after_an_error() -> None:
    network = SmallDenoiser(0)
    before = weights(network)
    with pytest.raises(KeyError), loaded(network, SmallDenoiser(1)):
        raise KeyError
    assert same(weights(network), before)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_refused_and_nothing_is_changed(fault: str) -> None:
    network, state = SmallDenoiser(0), SmallDenoiser(1).state_dict()
    if fault == "missing":
        del state["time.weight"]
    elif fault == "unexpected":
        state["extra"] = torch.ones(1)
    else:
        state["time.weight"] = torch.ones(8, 3)
    before = weights(network)
    message = r"(?s)checkpoint does not fit the model: .*(time\.weight|extra)"
    with pytest.raises(ValueError, match=message), loaded(network, state):
        pytest.fail("it was accepted")
    assert same(weights(network), before)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    network = SmallDenoiser()
    with (
        pytest.raises(FileNotFoundError, match=r"checkpoint must be an existing file .* got .*absent"),
        loaded(network, tmp_path / "absent"),
    ):
        pass
    with (
        pytest.raises(FileNotFoundError, match=r"holds none of diffusion_pytorch_model\.safetensors"),
        loaded(network, tmp_path),
    ):
        pass


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was executed",))


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights.bin": (lambda path: torch.save({"weight": Bomb()}, path), "must hold tensors alone, .* are not executed"),
    "weights.pt": (lambda path: path.write_bytes(b"nonsense"), "must hold tensors alone, .* or is damaged"),
    "weights.ckpt": (lambda path: torch.save({"epoch": 3, "state": {}}, path), "tensors by name, .* epoch, state"),
    "weights.safetensors": (lambda path: path.write_bytes(b"nonsense"), "which is another kind of file or damaged"),
    "weights.gguf": (lambda path: path.write_bytes(b"GGUF"), r"must be a file that ends in \.safetensors"),
    "weights.safetensors.index.json": (lambda path: path.write_text("{}"), "must be an index of shards"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_is_refused_by_name_and_nothing_in_it_is_executed(tmp_path: Path, name: str) -> None:
    make, message = FILES[name]
    make(tmp_path / name)
    with (
        pytest.raises(ValueError, match=f"(?s)checkpoint .*{re.escape(name)}") as error,
        loaded(SmallDenoiser(), tmp_path / name),
    ):
        pass
    assert re.search(message, str(error.value))


def halves(network: Any, folder: Path) -> Path:
    """In shards with an index, as large networks are saved."""
    network.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*-of-*"))) > 1
    return folder


def state_dict_file(network: Any, folder: Path, prefix: str = "") -> Path:
    folder.mkdir()
    torch.save({f"{prefix}{name}": p for name, p in network.state_dict().items()}, folder / "pytorch_model.bin")
    return folder


def accelerate_folder(network: Any, folder: Path) -> Path:
    """As accelerate saves the state of a training run."""
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    torch.save({"step": 3}, folder / "optimizer.bin")
    (folder / "random_states_0.pkl").write_bytes(b"")
    return folder


def within(network: Any, folder: Path, *parts: str) -> Path:
    for part in parts:
        network.save_pretrained(folder / part)
    return folder


PLACES: dict[str, Callable[[Any, Path], Path]] = {
    "shards": halves,
    "index of shards": lambda network, folder: next(halves(network, folder).glob("*.index.json")),
    "shards of a variant": lambda network, folder: (
        network.save_pretrained(folder, max_shard_size="100KB", variant="fp16"),
        folder,
    )[1],
    "variant": lambda network, folder: (network.save_pretrained(folder, variant="fp16"), folder)[1],
    "bin of diffusers": lambda network, folder: (network.save_pretrained(folder, safe_serialization=False), folder)[1],
    "bin": state_dict_file,
    "bin of a parallel run": lambda network, folder: state_dict_file(network, folder, "module."),
    "accelerate": accelerate_folder,
    "training run with EMA": lambda network, folder: within(network, folder, "unet"),
    "EMA of a training run": lambda network, folder: within(network, folder, "unet_ema") / "unet_ema",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_where_weights_lie_is_a_checkpoint(tmp_path: Path, place: str) -> None:
    network, other = make_unet(0), make_unet(1)
    with loaded(network, PLACES[place](other, tmp_path / "saved")):
        assert same(weights(network), weights(other))
    assert same(weights(network), weights(make_unet(0)))


def test_a_folder_with_several_sets_of_weights_is_refused_with_their_names(tmp_path: Path) -> None:
    network = make_unet(0)
    network.save_pretrained(tmp_path / "a", variant="fp16")
    network.save_pretrained(tmp_path / "a", variant="ema")
    save_file({"x": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "two.safetensors")
    for folder, names in ((tmp_path / "a", r"ema\.safetensors, .*fp16\.safetensors"), (tmp_path, r"one.*, two")):
        with (
            pytest.raises(ValueError, match=f"holds several .*{names}.*: name one of the files"),
            loaded(network, folder),
        ):
            pass


def test_an_index_that_its_shards_do_not_bear_out_is_refused(tmp_path: Path) -> None:
    folder = halves(make_unet(0), tmp_path / "saved")
    next(folder.glob("*-00001-of-*")).unlink()
    with pytest.raises(FileNotFoundError, match="names shards that are not there"), loaded(make_unet(0), folder):
        pass
    index = next(folder.glob("*.index.json"))
    index.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="must name files of its own folder"), loaded(make_unet(0), folder):
        pass


def test_what_is_no_checkpoint_is_refused_by_its_kind() -> None:
    message = "checkpoint must be a file, a folder, a state dict or a module, got int: 3"
    with pytest.raises(TypeError, match=message), loaded(SmallDenoiser(), 3):  # type: ignore[arg-type]
        pass


def test_a_pattern_stands_for_what_it_matches_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    for step in (1000, 500, 20):
        make_unet(step).save_pretrained(tmp_path / f"checkpoint-{step}")
    found = as_checkpoints([tmp_path / "checkpoint-*", tmp_path / "checkpoint-20"])
    assert [Path(str(path)).name for path in found] == [f"checkpoint-{step}" for step in (20, 500, 1000, 20)]
    assert [str(path) for path in as_checkpoints([str(tmp_path / "checkpoint-5*")])] == [
        str(tmp_path / "checkpoint-500")
    ]
    with pytest.raises(FileNotFoundError, match="which no file or folder matches"):
        as_checkpoints([tmp_path / "epoch-*"])


def test_weights_of_another_network_are_refused_with_their_first_keys(tmp_path: Path) -> None:
    save_file({"model.diffusion_model.input_blocks.0.0.bias": torch.ones(8)}, tmp_path / "sd.safetensors")
    message = r"does not fit the model: .* are missing .*begins with model\.diffusion_model\.input_blocks"
    with pytest.raises(ValueError, match=message), loaded(make_unet(0), tmp_path / "sd.safetensors"):
        pass
