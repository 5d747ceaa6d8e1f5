"""What a network must be like so that its layers can be watched one by one, and what it may return."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import partial
from typing import Any

import torch
from diffusers.models.modeling_utils import get_parameter_dtype
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Networks of diffusers whose arguments are known without their pipeline, and pipelines that know others.
_KNOWN = {"UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"}
_PIPELINES = {
    "AuraFlowTransformer2DModel": "AuraFlowPipeline",
    "ChromaTransformer2DModel": "ChromaPipeline",
    "Flux2Transformer2DModel": "Flux2Pipeline or Flux2KleinPipeline",
    "FluxTransformer2DModel": "FluxPipeline",
    "HiDreamImageTransformer2DModel": "HiDreamImagePipeline",
    "HunyuanDiT2DModel": "HunyuanDiTPipeline",
    "Lumina2Transformer2DModel": "Lumina2Pipeline",
    "PixArtTransformer2DModel": "PixArtAlphaPipeline or PixArtSigmaPipeline",
    "QwenImageTransformer2DModel": "QwenImagePipeline",
    "SanaTransformer2DModel": "SanaPipeline",
    "ZImageTransformer2DModel": "ZImagePipeline",
    "SD3Transformer2DModel": "StableDiffusion3Pipeline",
    "WanTransformer3DModel": "WanPipeline",
    "LTXVideoTransformer3DModel": "LTXPipeline",
    "HunyuanVideoTransformer3DModel": "HunyuanVideoPipeline",
    "CogVideoXTransformer3DModel": "CogVideoXPipeline",
    "StableAudioDiTModel": "StableAudioPipeline",
}

_COMPUTED_IN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network without what was put around it to run or train it, sharing its parameters.

    That is ``torch.compile(network)``, ``PeftModel``, ``DataParallel`` and ``DistributedDataParallel``, and the mixed
    precision that accelerate's ``prepare`` leaves on a network's ``forward``.

    Args:
        network: The network.

    Returns:
        What is inside.

    Raises:
        TypeError: If it is no network.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network of the model must be a torch.nn.Module, got {type(network).__name__}")
    if any(kind.__name__ in ("PeftModel", "PeftMixedModel") for kind in type(network).__mro__):
        inside: nn.Module = network.get_base_model()  # type: ignore[operator]
        return unwrapped(inside)
    for name in ("module", "_orig_mod"):
        inner = getattr(network, name, None)
        wrapped = name == "_orig_mod" or isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel)
        if wrapped and isinstance(inner, nn.Module):
            return unwrapped(inner)
    if "_original_forward" in vars(network) and "forward" in vars(network):
        # A shallow copy has the same parameters and layers; the caller's own goes on training as before.
        network = copy(network)
        del network.forward, network._original_forward
    return network


def check_network(network: nn.Module) -> None:
    """Refuse a network that cannot be measured.

    Args:
        network: The network, unwrapped.

    Raises:
        ValueError: If it or a dropout in it is in train mode, a layer is compiled, a parameter was made in
            ``torch.inference_mode()`` or is not at hand where its layer computes (see ``check_offload`` and
            ``check_placed``) or packed for inference, gradient checkpointing is reentrant, or an IP-Adapter is loaded.
    """
    if network.training:
        raise ValueError("model must be in eval mode, got train mode; call model.eval()")
    # Loading LoRA weights leaves the new layers in train mode, which matters only to what is random in it.
    check_chance(network, "model")
    compiled = [name or "all of it" for name, module in network.named_modules() if _is_compiled(module)]
    if compiled:
        raise ValueError(
            f"model must not be compiled, for its layers are watched one by one, got {', '.join(compiled[:3])} "
            "compiled; load it again without compile()"
        )
    made = [name for name, p in network.named_parameters() if p.is_inference()]
    if made:
        raise ValueError(
            f"model must be made or loaded outside of torch.inference_mode(), which {made[0]} was made in: nothing can "
            "be differentiated by it"
        )

    check_offload(network, "model")
    check_placed(network)
    _keep_unpacked(network)
    reentrant = [name or "all of it" for name, module in network.named_modules() if _is_reentrant(module)]
    if reentrant:
        raise ValueError(
            "gradient checkpointing must not be reentrant, for its gradients are made out of sight, got "
            f"use_reentrant=True in {', '.join(reentrant[:3])}; call enable_gradient_checkpointing() without it"
        )
    projects = (
        getattr(network, "encoder_hid_proj", None) is not None or getattr(network, "image_proj", None) is not None
    )
    if projects and getattr(getattr(network, "config", None), "encoder_hid_dim_type", None) != "text_proj":
        raise ValueError(
            f"{type(network).__name__} must be told text alone, got one with an IP-Adapter or another projection of "
            "images, which needs an image as its prompt; call unload_ip_adapter() of its pipeline"
        )


def check_known(network: nn.Module) -> None:
    """Refuse a network of diffusers that takes other arguments than an image, a time and one condition.

    Raises:
        TypeError: If it is one; the message names the pipeline that knows it.
    """
    kinds = [kind for kind in type(network).__mro__ if kind.__module__.startswith("diffusers.models.")]
    models = [kind.__name__ for kind in kinds if "ModelMixin" in (base.__name__ for base in kind.__mro__[1:])]
    models = [name for name in models if not name.endswith("Mixin")]
    if not models or set(models) & _KNOWN:
        return
    pipeline = next((_PIPELINES[name] for name in models if name in _PIPELINES), None)
    cure = f"give its {pipeline}" if pipeline else "no adapter knows what it must be told besides"
    raise TypeError(
        f"network must be one of {', '.join(sorted(_KNOWN))} or a module of your own, got {type(network).__name__}: "
        f"{cure}"
    )


def check_offload(module: nn.Module, what: str) -> None:
    """Refuse a module whose parameters are elsewhere until it runs.

    Raises:
        ValueError: If there is a parameter on the meta device, or one that group offloading keeps on the disk.
    """
    away = [name for name, p in module.named_parameters() if p.is_meta]
    if away:
        raise ValueError(
            f"{what} must have its parameters at hand, got {away[0]} on the meta device, as sequential offload leaves "
            "it; load it without enable_sequential_cpu_offload(), or a device_map that goes beyond memory, in 16 bits "
            "or quantised"
        )
    disk = [name or "all of it" for name, group in _offload_groups(module) if group.offload_to_disk_path is not None]
    if disk:
        raise ValueError(
            f"{what} must have its parameters at hand, got group offloading of {disk[0]} to the disk, which leaves "
            "nothing in their place; call enable_group_offload() without offload_to_disk_path"
        )


def check_placed(network: nn.Module) -> None:
    """Refuse a network whose layers compute elsewhere than where its weights are, or not all in one place.

    Raises:
        ValueError: If weights are on several devices, or moved to another for as long as a layer runs.
    """
    devices = sorted({str(p.device) for p in network.parameters()})
    if len(devices) > 1:
        raise ValueError(
            f"model must have all its weights on one device, got {', '.join(devices)}, as a device_map over several "
            'spreads them; load it without, or with device_map="cuda:0"'
        )
    moved = [(name, group.onload_device) for name, group in _offload_groups(network)]
    moved += [(name, getattr(vars(m).get("_hf_hook"), "execution_device", None)) for name, m in network.named_modules()]
    for name, device in moved:
        if device is not None and [_kind(device)] != [_kind(found) for found in devices]:
            raise ValueError(
                f"model must keep its weights where its layers compute, for gradients need them after a layer has run, "
                f"got {name or 'all of it'} offloaded to {devices[0]}; load it without enable_group_offload() and "
                "enable_model_cpu_offload(), in 16 bits or quantised"
            )


def _kind(device: Any) -> str:
    """What sort of device is meant; accelerate counts GPUs."""
    return "cuda" if isinstance(device, int) else torch.device(device).type


def _offload_groups(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Modules that diffusers' group offloading moves by themselves, by name, with what it knows of their groups."""
    for name, part in module.named_modules():
        registry = vars(part).get("_diffusers_hook")
        hook = None if registry is None else registry.get_hook("group_offloading")
        if hook is not None:
            yield name, hook.group


def check_chance(module: nn.Module, what: str) -> None:
    """Refuse a module with a layer in train mode that makes its output depend on chance.

    Raises:
        ValueError: If there is one.
    """
    chance = [name for name, layer in module.named_modules() if layer.training and _is_random(layer)]
    if chance:
        raise ValueError(f"layers must be in eval mode, {', '.join(chance[:3])} are in train mode; call {what}.eval()")


def compute_dtype(network: nn.Module) -> torch.dtype:
    """Return the dtype that a network's layers compute in, whatever their weights are stored in.

    Under diffusers' layerwise casting that is what weights are cast to; else the dtype of the first parameter in 16
    bits or more. Integers and eight-bit floats are storage, of bitsandbytes, GGUF and the like.

    Args:
        network: The network.

    Returns:
        The dtype.
    """
    told = get_parameter_dtype(network)
    if told in _COMPUTED_IN:
        return told
    return next((p.dtype for p in network.parameters() if p.dtype in _COMPUTED_IN), torch.float32)


def sample_of(output: Any) -> Tensor:
    """Return the prediction in what a network returned.

    Raises:
        TypeError: If it is neither a tensor nor an object with ``.sample``.
    """
    found = output if isinstance(output, Tensor) else getattr(output, "sample", None)
    if not isinstance(found, Tensor):
        raise TypeError(f"network must return a tensor or an object with .sample, got {type(output).__name__}")
    return found


def _keep_unpacked(network: nn.Module) -> None:
    """Keep bitsandbytes from packing weights, which it does on some CPUs when a layer first runs without gradients."""
    for name, layer in network.named_modules():
        if not getattr(layer, "support_avx512bf16_for_cpu", False):
            continue
        if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ValueError(
                f"model must not have run before on this CPU, for bitsandbytes packed the weights of {name} for "
                "inference, so that they pass no gradient on; load it again and give it at once"
            )
        layer.support_avx512bf16_for_cpu = False


def _is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module go to what ``torch.compile`` made of it."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _is_reentrant(module: nn.Module) -> bool:
    """Whether gradient checkpointing is on and told to be reentrant."""
    function: Any = getattr(module, "_gradient_checkpointing_func", None)
    if not getattr(module, "gradient_checkpointing", False) or function is None:
        return False
    if isinstance(function, partial):
        return function.func is checkpoint and function.keywords.get("use_reentrant") is not False
    return function is checkpoint


def _is_random(module: nn.Module) -> bool:
    """Whether train mode makes the output depend on chance or on the rest of the batch."""
    dropout = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
    return module.p > 0 if isinstance(module, dropout) else isinstance(module, nn.modules.batchnorm._BatchNorm)
