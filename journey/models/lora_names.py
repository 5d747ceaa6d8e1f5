"""How the tensors of an adapter are called: by the network, by peft, kohya, and what diffusers can convert."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Which part of diffusers knows how the files of a network's adapters are written, and what they call the network.
_CONVERTERS = {
    "AuraFlowTransformer2DModel": "AuraFlowLoraLoaderMixin",
    "ChromaTransformer2DModel": "FluxLoraLoaderMixin",
    "CogVideoXTransformer3DModel": "CogVideoXLoraLoaderMixin",
    "Flux2Transformer2DModel": "Flux2LoraLoaderMixin",
    "FluxTransformer2DModel": "FluxLoraLoaderMixin",
    "HiDreamImageTransformer2DModel": "HiDreamImageLoraLoaderMixin",
    "HunyuanVideoTransformer3DModel": "HunyuanVideoLoraLoaderMixin",
    "LTXVideoTransformer3DModel": "LTXVideoLoraLoaderMixin",
    "Lumina2Transformer2DModel": "Lumina2LoraLoaderMixin",
    "QwenImageTransformer2DModel": "QwenImageLoraLoaderMixin",
    "SD3Transformer2DModel": "SD3LoraLoaderMixin",
    "SanaTransformer2DModel": "SanaLoraLoaderMixin",
    "UNet2DConditionModel": "StableDiffusionLoraLoaderMixin",
    "WanTransformer3DModel": "WanLoraLoaderMixin",
    "ZImageTransformer2DModel": "ZImageLoraLoaderMixin",
}
# What stands before the name of a layer; several may.
_PREFIXES = ("base_model.model.", "diffusion_model.", "unet.", "transformer.")
TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.", "text_encoder_3.", "lora_te")
# Whose spelling it is that begins so, and what can be done where no converter of diffusers takes it.
_SPELLINGS = {
    "lora_unet_": "the spelling of kohya's sd-scripts and musubi-tuner, whose convert_lora.py --target other writes "
    "the other one, diffusion_model.*",
    "lycoris_": "the spelling of LyCORIS, which must be written as peft does, base_model.model.*",
    "diffusion_model.": "the spelling of ComfyUI and of trainers on the original network, whose layers must be called "
    "as diffusers' are",
    "model.diffusion_model.": "the spelling of the original network, whose layers must be called as diffusers' are",
}
_ADAPTER = re.compile(r"lora|\.lokr_|\.hada_|\.oft_|dora_scale")


class Spelled(NamedTuple):
    """An adapter's tensors by the names that peft gives them.

    Attributes:
        own: Those of the network.
        elsewhere: Names of those of the text encoders.
        alphas: ``lora_alpha`` of each layer that has one of its own.
    """

    own: dict[str, Tensor]
    elsewhere: list[str]
    alphas: dict[str, float]


def first_keys(tensors: Mapping[str, Any]) -> str:
    """Return the first names of a file's tensors, for a message."""
    return ", ".join(list(tensors)[:3]) or "nothing"


def holds_adapter(tensors: Mapping[str, Any]) -> bool:
    """Whether tensors are those of an adapter alone, in any spelling."""
    return any(map(_ADAPTER.search, tensors)) and not any(".base_layer." in name for name in tensors)


def places(network: nn.Module) -> dict[str, str]:
    """Return what the tensors of a network's only adapter are called, by what peft calls them in a file.

    Raises:
        ValueError: If the network has no adapter or several.
    """
    adapters = list(getattr(network, "peft_config", {}))
    if len(adapters) != 1:
        raise ValueError(f"checkpoint of a LoRA adapter needs a network with one adapter, got {adapters or 'none'}")
    found = {}
    for name in network.state_dict():
        words = name.split(".")
        if adapters[0] in words:
            words.remove(adapters[0])
            found[bare_name(".".join(words).replace(".modules_to_save.", "."))] = name
    return found


def bare_name(name: str) -> str:
    """Return a tensor's name as peft writes it, without what stands before it and without the adapter's name."""
    while (prefix := next(filter(name.startswith, _PREFIXES), "")) and name != prefix:
        name = name.removeprefix(prefix)
    name = name.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")
    name = re.sub(r"\.(lora_[AB])\.[^.]+\.(weight|bias)$", r".\1.\2", name)
    return re.sub(r"\.lora_magnitude_vector\.(?:[^.]+\.)?weight$", ".lora_magnitude_vector", name)


def plain(tensors: Mapping[str, Any]) -> Spelled:
    """Split tensors into the network's, names of the text encoders', and the ``lora_alpha`` of each layer.

    Returns:
        These three; names are peft's.

    Raises:
        ValueError: If two of them are the same tensor in different spellings.
    """
    # Here, because nothing else needs it.
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    elsewhere = [name for name in tensors if name.startswith(TEXT_ENCODERS)]
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(TEXT_ENCODERS)}
    renamed = {bare_name(name): tensor for name, tensor in convert_unet_state_dict_to_peft(rest).items()}
    if len(renamed) < len(rest):
        raise ValueError(f"checkpoint must name each tensor once, got {len(rest)} names of {len(renamed)} tensors")
    alphas = {
        re.split(r"\.lora_A|\.alpha$", name)[0]: float(alpha) for name, alpha in renamed.items() if _is_alpha(name)
    }
    own = {name: tensor for name, tensor in renamed.items() if not _is_alpha(name)}
    return Spelled(own, elsewhere, alphas)


def dotted(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of kohya's spelling with the names of the network's own layers, where these are meant."""
    joined = {f"lora_unet_{name.replace('.', '_')}": name for name, _ in network.named_modules()}
    split = {name: name.partition(".") for name in tensors}
    return {joined.get(layer, layer) + dot + rest: tensors[name] for name, (layer, dot, rest) in split.items()}


def _is_alpha(name: str) -> bool:
    return name.endswith(".alpha")


def spelled_as(expected: set[str], network: nn.Module, tensors: Mapping[str, Tensor]) -> Spelled:
    """Find the spelling in which tensors have the expected names: their own, or what diffusers converts.

    Args:
        expected: Names as peft gives them.
        network: Its class decides which converter.
        tensors: As they are in a file.

    Returns:
        That spelling; if none fits, the one with fewer unknown names.

    Raises:
        ValueError: If two of them are the same tensor in different spellings, or diffusers leaves some out.
    """
    found = plain(dotted(network, tensors))
    if set(found.own) <= expected:
        return found
    converted = _converted(network, tensors)
    spellings = [found] if converted is None else [found, converted]
    return min(spellings, key=lambda spelled: len(set(spelled.own) - expected))


def told_spelling(tensors: Mapping[str, Any]) -> str:
    """Return in whose spelling an adapter is written and how it begins, for a message."""
    kinds = [cure for prefix, cure in _SPELLINGS.items() if any(name.startswith(prefix) for name in tensors)]
    told = f"it begins with {first_keys(tensors)}"
    return f"{told}, {kinds[0]}" if kinds else told


def _converted(network: nn.Module, tensors: Mapping[str, Tensor]) -> Spelled | None:
    """What diffusers' own reader of the network's family makes of tensors; None if it cannot. Nothing gets lost."""
    import diffusers.loaders

    config: Any = getattr(network, "config", None)
    name = next((_CONVERTERS[kind.__name__] for kind in type(network).__mro__ if kind.__name__ in _CONVERTERS), "")
    options: dict[str, Any] = {"return_alphas": True} if name == "FluxLoraLoaderMixin" else {}
    if getattr(config, "addition_embed_type", None) == "text_time":
        name, options = "StableDiffusionXLLoraLoaderMixin", {"unet_config": config}
    # By name: diffusers versions without a family remain usable for the rest.
    reader = getattr(diffusers.loaders, name, None)
    if reader is None:
        return None
    # Some converters scale tensors in place.
    given = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    watched = {name: tensor.requires_grad_() for name, tensor in given.items() if _is_weight(name, tensor)}
    try:
        with torch.enable_grad():
            found = reader.lora_state_dict({name: tensor.clone() for name, tensor in given.items()}, **options)
    # What converters raise where they expect other names; that nothing fits is told by the caller.
    except Exception:
        return None
    state, alphas = found if isinstance(found, tuple) else (found, None)
    _check_all_used(watched, state)
    own, elsewhere, inside = plain({name: tensor.detach() for name, tensor in state.items()})
    return Spelled(own, elsewhere, {**inside, **plain(alphas or {}).alphas})


def _check_all_used(given: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> None:
    """Refuse a conversion in which tensors got lost: whatever was made of a tensor depends on it."""
    parts = [tensor.float().sum() for tensor in made.values() if tensor.requires_grad]
    if not parts:
        return
    grads = torch.autograd.grad(torch.stack(parts).sum(), list(given.values()), allow_unused=True)
    lost = [name for (name, tensor), grad in zip(given.items(), grads, strict=True) if grad is None and tensor.any()]
    if lost:
        raise ValueError(
            f"diffusers leaves out {len(lost)} tensors when it converts the file, such as {', '.join(lost[:2])}, so "
            "that the adapter would be another one; export it without them"
        )


def _is_weight(name: str, tensor: Tensor) -> bool:
    """Whether something must come of a tensor: not of a scale, which is a number and not looked at by autograd."""
    return tensor.is_floating_point() and tensor.dtype.itemsize > 1 and not _is_alpha(name)
