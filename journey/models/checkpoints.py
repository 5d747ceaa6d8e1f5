"""Several sets of weights of one network, put in place one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from journey.locks import exclusively

# The file of a network inside a folder that diffusers saved.
_WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "transformer/diffusion_pytorch_model.safetensors",
    "pytorch_lora_weights.safetensors",
)
# What LoRA files call the network.
_LORA_PREFIXES = ("unet.", "transformer.")

Checkpoint = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module


@contextmanager
def loaded(network: nn.Module, checkpoint: Checkpoint | None) -> Iterator[None]:
    """Put a checkpoint's weights into a network for a while.

    Args:
        network: The network; has its own weights back afterwards. Other threads wait for it meanwhile.
        checkpoint: A state dict, a module of the same architecture, a ``.safetensors`` file or a folder that diffusers
            saved; None leaves the weights alone. For a network with a LoRA adapter it may be the adapter's weights
            alone, as ``save_lora_weights`` writes them.

    Yields:
        Nothing.

    Raises:
        FileNotFoundError: If there is no such file, or the folder holds no weights.
        ValueError: If names or shapes of the weights do not fit the network.
    """
    with exclusively(network):
        if checkpoint is None:
            yield
            return
        weights = _adapter_weights(network, _read(checkpoint))
        partial = any(".lora_" in name for name in weights) and all(".lora_" in name for name in weights)
        state = network.state_dict()
        own = {name: tensor.clone() for name, tensor in state.items() if not partial or ".lora_" in name}
        if set(weights) != set(own):
            raise ValueError(
                f"checkpoint does not fit the {'adapter' if partial else 'model'}: {_differing(own, weights)}"
            )
        try:
            try:
                network.load_state_dict(weights, strict=not partial)
            except RuntimeError as error:
                raise ValueError(f"checkpoint does not fit the model: {error}") from None
            yield
        finally:
            network.load_state_dict(own, strict=not partial)


def as_checkpoints(checkpoints: Sequence[Checkpoint] | None) -> tuple[Checkpoint | None, ...]:
    """Return the sets of weights to measure under, one after the other.

    Args:
        checkpoints: As given to ``journey.featurize``; None stands for the network's own weights.

    Returns:
        At least one, None for the network's own.

    Raises:
        TypeError: If it is one checkpoint instead of a sequence of them.
        ValueError: If it is empty.
    """
    if checkpoints is None:
        return (None,)
    if isinstance(checkpoints, str | os.PathLike | Mapping | nn.Module):
        raise TypeError(
            f"checkpoints must be a list of checkpoints, got a single {type(checkpoints).__name__}; put it in a list: "
            "checkpoints=[...]"
        )
    if not checkpoints:
        raise ValueError("checkpoints must name at least one set of weights, got none")
    return tuple(checkpoints)


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
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint must be a .safetensors file, got {path}, which is another kind of file or damaged: {error}"
        ) from error


def _adapter_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Name the weights of a LoRA file as the network does: without a prefix, with the adapter's name."""
    adapters = list(getattr(network, "peft_config", {}))
    if not weights or not all(".lora_" in name for name in weights) or set(weights) <= set(network.state_dict()):
        return weights
    if len(adapters) != 1:
        raise ValueError(f"checkpoint of a LoRA adapter needs a network with one adapter, got {adapters or 'none'}")
    renamed = {}
    for name, tensor in weights.items():
        for prefix in _LORA_PREFIXES:
            name = name.removeprefix(prefix)
        module, _, last = name.rpartition(".")
        renamed[f"{module}.{adapters[0]}.{last}"] = tensor
    return renamed


def _differing(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    missing, unknown = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    return f"{len(missing)} weights are missing {missing[:2]}, {len(unknown)} are unknown {unknown[:2]}"
