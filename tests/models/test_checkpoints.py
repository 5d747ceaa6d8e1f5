"""A checkpoint's weights are in the network for as long as they are asked for, and its own come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline
from models import SmallDenoiser, make_scheduler, make_unet
from safetensors.torch import save_file
from torch import Tensor, nn

from journey.models.checkpoints import loaded


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
        pytest.raises(FileNotFoundError, match=r"checkpoint must be an existing .* got .*absent"),
        loaded(network, tmp_path / "absent"),
    ):
        pass
    with (
        pytest.raises(FileNotFoundError, match=r"holds none of diffusion_pytorch_model\.safetensors"),
        loaded(network, tmp_path),
    ):
        pass


def test_a_checkpoint_of_another_kind_of_file_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(SmallDenoiser().state_dict(), tmp_path / "weights.pt")
    with (
        pytest.raises(ValueError, match=r"must be a \.safetensors file, got .*weights\.pt, which is another kind"),
        loaded(SmallDenoiser(), tmp_path / "weights.pt"),
    ):
        pass
