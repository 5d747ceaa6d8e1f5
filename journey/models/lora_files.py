"""Adapters in the spellings of those who train them: diffusers, peft, kohya, and what diffusers can convert.

A file is right for a network if each of its tensors has a place in the network's adapter, each place gets a tensor, and
the scale ``lora_alpha / r`` is that of the network: without it the same tensors are another adapter.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from journey.models.lora_names import TEXT_ENCODERS, bare_name, dotted, places, plain, spelled_as, told_spelling
from journey.models.network import check_offload, unwrapped
from journey.models.weight_files import WeightFile, read_weights

# What of an adapter's config decides what its tensors mean.
_MEANING = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora", "use_dora", "lora_bias")


@dataclass(frozen=True)
class Adapter:
    """The weights of an adapter, named as the network names them.

    Attributes:
        tensors: Those of the network.
        elsewhere: Names of those of the text encoders.
    """

    tensors: dict[str, Tensor]
    elsewhere: list[str]


def read_adapter(network: nn.Module, file: WeightFile, *, strict: bool = True) -> Adapter:
    """Name the tensors of an adapter's file as the network does, and compare rank and scale.

    Args:
        network: With one adapter.
        file: The file, or tensors in memory.
        strict: Whether a file that tells no ``lora_alpha`` stands for ``lora_alpha = r``, as diffusers reads it.

    Returns:
        Exactly the tensors of the network's adapter.

    Raises:
        ValueError: If a tensor has no place in the network or a place no tensor, or rank or scale differ.
    """
    _refuse_dora(file)
    where = places(network)
    own, elsewhere, alphas = spelled_as(set(where), network, file.tensors)
    unscaled = {f"{layer}.alpha" for layer in alphas if f"{layer}.lora_A.weight" not in own}
    unknown, missing = sorted((set(own) - set(where)) | unscaled), sorted(set(where) - set(own))
    if unknown or missing:
        raise ValueError(
            f"checkpoint does not fit the adapter: {len(missing)} weights are missing {missing[:2]}, {len(unknown)} "
            f"are unknown {unknown[:2]}; of {file.path}, {told_spelling(file.tensors)}"
        )
    state = network.state_dict()
    for name, tensor in own.items():
        if tensor.shape != state[where[name]].shape:
            raise ValueError(
                f"checkpoint does not fit the adapter: {name} must be {list(state[where[name]].shape)}, got "
                f"{list(tensor.shape)} in {file.path}: the ranks or the layers differ"
            )
    _check_scale(network, own, alphas, file, strict=strict)
    return Adapter({where[name]: tensor for name, tensor in own.items()}, elsewhere)


def load_lora(pipeline: Any, *sources: str | os.PathLike[str]) -> None:
    """Load an adapter into a pipeline, and see that all of it arrived.

    Args:
        pipeline: A diffusers pipeline, without an adapter. All of it is in eval mode afterwards, for the adapter may
            bring a dropout.
        *sources: A file, a folder or a repo id; of a pipeline with two networks two, the first for high noise.

    Raises:
        ValueError: If the pipeline takes no adapters or another number of them, or a tensor of a file is not in its
            network afterwards.
        OSError: If one is neither on the disk nor to be had.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(
            "lora needs a pipeline with load_lora_weights, such as StableDiffusionPipeline, got "
            f"{type(pipeline).__name__}"
        )
    parts = ["unet" if hasattr(pipeline, "unet") else "transformer"]
    if getattr(pipeline, "transformer_2", None) is not None:
        parts.append("transformer_2")
    if len(sources) != len(parts):
        given = ", ".join(str(source) for source in sources)
        alone = (
            "; for one alone call load_lora_weights(...), for the second with load_into_transformer_2=True, and "
            "requires_grad_(False) on the other, and measure from Python"
        )
        raise ValueError(
            f"lora of a {type(pipeline).__name__} must be {len(parts)} files, for {' and '.join(parts)}, got {given}"
            f"{alone if len(parts) > 1 else ''}"
        )
    for part, source in zip(parts, sources, strict=True):
        _load_into(pipeline, part, source)
    for module in vars(pipeline).values():
        if isinstance(module, nn.Module):
            module.eval()


def _load_into(pipeline: Any, part: str, source: str | os.PathLike[str]) -> None:
    """Load an adapter into one network of a pipeline."""
    path = Path(source)
    file = read_weights(path) if path.exists() else _fetched(pipeline, os.fspath(source))
    network = unwrapped(getattr(pipeline, part))
    check_offload(network, part)
    refused = f"lora {source} was not read as an adapter of {type(pipeline).__name__}"
    options = {"load_into_transformer_2": True} if part == "transformer_2" else {}
    try:
        _refuse_dora(file)
        if not _loaded_by_its_names(network, part, file):
            pipeline.load_lora_weights(file.path if path.exists() else os.fspath(source), **options)
        if not getattr(network, "peft_config", None):
            layer = next(name for name, layer in network.named_modules() if isinstance(layer, nn.Linear))
            raise ValueError(f"nothing in it is called as a layer of the network, such as {layer}")
        found = read_adapter(network, file, strict=False).tensors
    # Converters raise all sorts of errors where they expect other names.
    except Exception as error:
        told = f"{told_spelling(file.tensors)} ({type(error).__name__}: {error})"
        raise ValueError(f"{refused}: {error if 'it begins with' in str(error) else told}") from error
    state = network.state_dict()
    other = [name for name, tensor in found.items() if not state[name].equal(tensor.to(state[name]))]
    if other:
        raise ValueError(f"{refused}: {told_spelling(file.tensors)}, but {other[0]} of the network has other values")


def _refuse_dora(file: WeightFile) -> None:
    if any("dora_scale" in name for name in file.tensors):
        raise ValueError(
            f"checkpoint {file.path} is a DoRA with dora_scale, which diffusers leaves out when it converts the file: "
            "give it as peft writes it, with lora_magnitude_vector"
        )


def check_same_scale(network: nn.Module, other: nn.Module) -> None:
    """Refuse a network with adapters whose ``lora_alpha / r`` differ from the network's.

    Raises:
        ValueError: If they differ in a layer.
    """
    scales = {name: getattr(layer, "scaling", None) for name, layer in other.named_modules()}
    for name, layer in network.named_modules():
        own = getattr(layer, "scaling", None)
        if isinstance(own, dict) and own != scales.get(name):
            raise ValueError(
                f"checkpoint must scale its adapter as the network does, {own} in {name}, got {scales.get(name)}"
            )


def _loaded_by_its_names(network: Any, part: str, file: WeightFile) -> bool:
    """Load an adapter whose tensors are named as the network's layers, without the prefix that diffusers asks for."""
    prefixed = all(name.startswith((f"{part}.", *TEXT_ENCODERS)) for name in file.tensors)
    if prefixed and not any(name.endswith(".alpha") for name in file.tensors):
        return False
    own, elsewhere, alphas = plain(dotted(network, file.tensors))
    layers = dict(network.named_modules())
    if elsewhere or not all(".lora_" in name and name.partition(".lora_")[0] in layers for name in own):
        return False
    config = _config(file)
    if config is not None and config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"its adapter_config.json says peft_type={config['peft_type']}, only LORA is loaded")
    told = {f"{part}.{key}": config[key] for key in _MEANING if key in config} if config else None
    network.load_lora_adapter(
        {f"{part}.{name}": tensor for name, tensor in own.items()},
        prefix=part,
        metadata=told,
        network_alphas=None if told else {f"{part}.{layer}.alpha": alpha for layer, alpha in alphas.items()},
    )
    return True


def _fetched(pipeline: Any, source: str) -> WeightFile:
    """The adapter of a repo, as diffusers reads it."""
    try:
        found = pipeline.lora_state_dict(source)
    except (OSError, ValueError) as error:
        raise OSError(
            f"lora must be an existing file or folder, or a repo id that is cached or reachable, got {source}: {error}"
        ) from error
    return WeightFile(found[0] if isinstance(found, tuple) else found, Path(source))


def _config(file: WeightFile) -> Mapping[str, Any] | None:
    """What a file tells about the adapter in it, peft's names."""
    if file.config is not None:
        return file.config
    if "lora_adapter_metadata" not in file.metadata:
        return None
    told = json.loads(file.metadata["lora_adapter_metadata"])
    parts = ("unet.", "transformer.")
    named = {key.partition(".")[2]: value for key, value in told.items() if key.startswith(parts)}
    return named or {key: value for key, value in told.items() if "." not in key} or None


def _check_scale(
    network: Any, own: Mapping[str, Tensor], alphas: Mapping[str, float], file: WeightFile, *, strict: bool
) -> None:
    """Refuse a file whose ``lora_alpha`` is another than the network's."""
    config = _config(file) or {}
    adapter = next(iter(network.peft_config))
    meant = network.peft_config[adapter]
    if not hasattr(meant, "lora_alpha"):
        _check_other_scale(meant, config, file, strict=strict)
    rooted = bool(getattr(meant, "use_rslora", False))
    for name, layer in network.named_modules():
        layer_name = bare_name(name)
        rank = getattr(layer, "r", {})
        if f"{layer_name}.lora_A.weight" not in own or adapter not in rank:
            continue
        alpha = alphas.get(layer_name, _of_pattern(config, layer_name))
        has = float(layer.lora_alpha[adapter])
        if alpha is None and strict and (has != rank[adapter] or rooted):
            raise ValueError(
                f"checkpoint {file.path} does not tell its lora_alpha, which stands for lora_alpha = r = "
                f"{rank[adapter]}, but the network's adapter has lora_alpha = {has:g} with "
                f"use_rslora={rooted} in {layer_name}: load the "
                "network's adapter from such a file, or give a state dict, which takes the network's"
            )
        if alpha is not None and (alpha != has or (bool(config.get("use_rslora", False)) != rooted)):
            raise ValueError(
                f"checkpoint must have the lora_alpha of the network's adapter, {has:g} with use_rslora={rooted} in "
                f"{layer_name}, got {alpha:g} with use_rslora={bool(config.get('use_rslora', False))} in {file.path}: "
                "load the network's adapter from this file"
            )


def _check_other_scale(meant: Any, config: Mapping[str, Any], file: WeightFile, *, strict: bool) -> None:
    """The same for adapters such as LoKr and LoHa, which have one ``alpha``."""
    alpha, rank = getattr(meant, "alpha", None), getattr(meant, "r", None)
    told = config.get("alpha", rank if strict else alpha)
    if told != alpha:
        raise ValueError(
            f"checkpoint must have the alpha of the network's adapter, {alpha}, got {told} in {file.path} (r = {rank} "
            "where none is told): load the network's adapter from this file, or give a state dict"
        )


def _of_pattern(config: Mapping[str, Any], layer: str) -> float | None:
    """The ``lora_alpha`` of a layer by a config: that of a pattern which its name ends with, else the common one."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return float(alpha)
    return None if config.get("lora_alpha") is None else float(config["lora_alpha"])
