"""Several sets of weights of one network, put in place one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

# The file of a network inside a folder that diffusers saved.
_WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors")

Checkpoint = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module


@contextmanager
def loaded(network: nn.Module, checkpoint: Checkpoint | None) -> Iterator[None]:
    """Put a checkpoint's weights into a network for a while.

    Args:
        network: The network; has its own weights back afterwards.
        checkpoint: A state dict, a module of the same architecture, a ``.safetensors`` file or a folder that diffusers
            saved; None leaves the weights alone.

    Yields:
        Nothing.

    Raises:
        FileNotFoundError: If there is no such file, or the folder holds no weights.
        ValueError: If names or shapes of the weights do not fit the network.
    """
    if checkpoint is None:
        yield
        return
    weights = _read(checkpoint)
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try:
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"checkpoint does not fit the model: {error}") from None
        yield
    finally:
        network.load_state_dict(own)


def _read(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    if isinstance(checkpoint, nn.Module):
        return checkpoint.state_dict()
    if isinstance(checkpoint, Mapping):
        return checkpoint
    path = Path(checkpoint)
    if path.is_dir():
        files = [path / name for name in _WEIGHT_FILES if (path / name).exists()]
        if not files:
            raise FileNotFoundError(f"checkpoint folder {path} holds none of {', '.join(_WEIGHT_FILES)}")
        path = files[0]
    if not path.exists():
        raise FileNotFoundError(f"checkpoint must be an existing .safetensors file or folder, got {path}")
    return load_file(path)
