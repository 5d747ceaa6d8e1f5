"""Several sets of weights of one network, put in place one after the other."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard, cast

from torch import Tensor, nn

from journey.locks import exclusively
from journey.models.experts import Experts
from journey.models.lora_files import check_same_scale, read_adapter
from journey.models.lora_names import first_keys, holds_adapter
from journey.models.weight_files import WeightFile, expand, read_weights

# What stands before every name in files of wrapped networks and of whole models.
_PREFIXES = ("module.", "_orig_mod.", "unet.", "transformer.", "model.", "base_model.model.")

_Place = str | os.PathLike[str]
_Weights = _Place | Mapping[str, Tensor] | nn.Module
Checkpoint = _Weights | Mapping[str, _Weights]


@contextmanager
def loaded(network: nn.Module, checkpoint: Checkpoint | None) -> Iterator[None]:
    """Put a checkpoint's weights into a network for a while.

    Args:
        network: The network; has its own weights back afterwards. Other threads wait for it meanwhile.
        checkpoint: A state dict, a module of the same architecture, or a file or folder as
            ``journey.models.weight_files`` reads it; None leaves the weights alone. For a network with a LoRA adapter
            it may be the adapter's weights alone, in any spelling that ``journey.models.lora_files`` reads. For two
            networks (``journey.models.experts``) it is one checkpoint for each: a folder with a folder for each, files
            by the networks' names, or tensors whose names begin with these; one that is left out keeps its own.

    Yields:
        Nothing.

    Raises:
        FileNotFoundError: If there is no such file, or the folder holds no weights.
        ValueError: If names or shapes of the weights do not fit the network, or an adapter has another scale.
    """
    with exclusively(network):
        if checkpoint is None:
            yield
            return
        with ExitStack() as held:
            if isinstance(network, Experts):
                for name, share in _shares(network, checkpoint).items():
                    held.enter_context(_placed(getattr(network, name), share))
            else:
                held.enter_context(_placed(network, checkpoint))
            yield


@contextmanager
def _placed(network: nn.Module, checkpoint: Checkpoint | WeightFile) -> Iterator[None]:
    """Put weights into one network, see ``loaded``."""
    file = _read(checkpoint)
    partial = holds_adapter(file.tensors)
    weights = _adapter(network, file, checkpoint) if partial else _whole(network, file)
    if isinstance(checkpoint, nn.Module):
        check_same_scale(network, checkpoint)
    own = {name: tensor.clone() for name, tensor in network.state_dict().items() if name in weights}
    try:
        try:
            network.load_state_dict(weights, strict=not partial)
        except RuntimeError as error:
            raise ValueError(f"checkpoint does not fit the model: {error}") from None
        yield
    finally:
        network.load_state_dict(own, strict=not partial)


def _shares(network: Experts, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What of a checkpoint is for which of two networks."""
    names = [name for name, _ in network.named_children()]
    if isinstance(checkpoint, Experts):
        return {name: getattr(checkpoint, name) for name in names}
    if isinstance(checkpoint, Mapping) and checkpoint and set(checkpoint) <= set(names):
        return checkpoint
    if isinstance(checkpoint, str | os.PathLike) and all((Path(checkpoint) / name).is_dir() for name in names):
        return {name: Path(checkpoint) / name for name in names}
    if isinstance(checkpoint, nn.Module) or _is_of_places(checkpoint):
        told = type(checkpoint).__name__ if isinstance(checkpoint, nn.Module) else f"files for {', '.join(checkpoint)}"
    else:
        file = _read(checkpoint)
        found = {name: _beginning_with(file, f"{name}.") for name in names}
        sizes = [len(share.tensors) for share in found.values()]
        if all(sizes) and sum(sizes) == len(file.tensors):
            return found if isinstance(checkpoint, str | os.PathLike) else {n: f.tensors for n, f in found.items()}
        told = f"{file.path} that begins with {first_keys(file.tensors)}"
    raise ValueError(
        f"checkpoint of a model with two networks must say which weights are whose, got {told}: give a folder with "
        f'{names[0]}/ and {names[1]}/ in it, {{"{names[0]}": path, "{names[1]}": path}} for two files, or tensors '
        f"named {names[0]}.* and {names[1]}.*"
    )


def _beginning_with(file: WeightFile, prefix: str) -> WeightFile:
    """The tensors of a file whose names begin alike, without what they begin with."""
    found = {name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    return replace(file, tensors=found)


def _is_of_places(checkpoint: Any) -> TypeGuard[Mapping[str, _Place]]:
    """Whether a checkpoint names files instead of tensors."""
    return isinstance(checkpoint, Mapping) and any(isinstance(x, str | os.PathLike) for x in checkpoint.values())


def as_checkpoints(checkpoints: Sequence[Checkpoint] | None) -> tuple[Checkpoint | None, ...]:
    """Return the sets of weights to measure under, one after the other.

    Args:
        checkpoints: As given to ``journey.featurize``; a pattern such as ``"run/checkpoint-*"`` stands for what it
            matches, in the order of the numbers in it; None stands for the network's own weights.

    Returns:
        At least one, None for the network's own.

    Raises:
        FileNotFoundError: If a pattern matches nothing.
        TypeError: If it is one checkpoint instead of a sequence of them.
        ValueError: If it is empty.
    """
    if checkpoints is None:
        return (None,)
    single = isinstance(checkpoints, str | os.PathLike | Mapping | nn.Module)
    if single or not isinstance(checkpoints, Sequence):
        raise TypeError(
            f"checkpoints must be a list of checkpoints, got a single {type(checkpoints).__name__}; put it in a list: "
            "checkpoints=[...]"
        )
    if not checkpoints:
        raise ValueError("checkpoints must name at least one set of weights, got none")
    found: list[Checkpoint] = []
    for checkpoint in checkpoints:
        named = isinstance(checkpoint, str | os.PathLike)
        found += expand(Path(checkpoint)) if named else [checkpoint]  # type: ignore[arg-type]
    return tuple(found)


def _read(checkpoint: Checkpoint | WeightFile) -> WeightFile:
    if isinstance(checkpoint, WeightFile):
        return checkpoint
    if _is_of_places(checkpoint):
        raise ValueError(
            f"checkpoint of one network must be one set of weights, got files for {', '.join(checkpoint)}, as models "
            "with two networks have them: give one path"
        )
    if isinstance(checkpoint, nn.Module):
        return WeightFile(checkpoint.state_dict(), Path(type(checkpoint).__name__))
    if isinstance(checkpoint, Mapping):
        return WeightFile(cast("Mapping[str, Tensor]", checkpoint), Path("the state dict"))
    if not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(
            f"checkpoint must be a file, a folder, a state dict or a module, got {type(checkpoint).__name__}: "
            f"{checkpoint!r}"
        )
    return read_weights(Path(checkpoint))


def _adapter(network: nn.Module, file: WeightFile, checkpoint: Checkpoint | WeightFile) -> Mapping[str, Tensor]:
    """The weights of an adapter alone. What is in memory has the scale of the network; a file tells its own."""
    found = read_adapter(network, file, strict=isinstance(checkpoint, str | os.PathLike | WeightFile))
    if found.elsewhere:
        warnings.warn(
            f"{len(found.elsewhere)} tensors of {file.path}, such as {found.elsewhere[0]}, are left out: they are the "
            "text encoder's, which is not measured and stays as it is in the model",
            stacklevel=6,  # the caller of what measures
        )
    return found.tensors


def _whole(network: Any, file: WeightFile) -> Mapping[str, Tensor]:
    """All weights of a network, by its own names."""
    own, weights = set(network.state_dict()), dict(file.tensors)
    if hasattr(network, "_fix_state_dict_keys_on_load"):  # attention of old models, as diffusers renames it
        network._fix_state_dict_keys_on_load(weights)
    while set(weights) != own and (prefix := _common_prefix(weights)):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    if set(weights) == own:
        return weights
    missing, unknown = sorted(own - set(weights)), sorted(set(weights) - own)
    raise ValueError(
        f"checkpoint does not fit the model: {len(missing)} weights are missing {missing[:2]}, {len(unknown)} are "
        f"unknown {unknown[:2]}; {file.path} begins with {first_keys(file.tensors)}"
    )


def _common_prefix(names: Mapping[str, Tensor]) -> str:
    """What all names begin with."""
    return next((prefix for prefix in _PREFIXES if names and all(name.startswith(prefix) for name in names)), "")
