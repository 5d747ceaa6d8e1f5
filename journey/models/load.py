"""Models in the forms people have them, each through the adapter of its family (``journey.models``)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines import pipeline_utils
from torch import nn

from journey.models.aura_flow import AuraFlow
from journey.models.chroma import Chroma
from journey.models.cogvideox import CogVideoX
from journey.models.conditional import ConditionalDenoiser
from journey.models.denoiser import Denoiser
from journey.models.dit import DiT
from journey.models.flux import Flux
from journey.models.flux_2 import Flux2, Flux2Klein
from journey.models.hidream import HiDream
from journey.models.hunyuan_dit import HunyuanDiT
from journey.models.hunyuan_video import HunyuanVideo
from journey.models.latent_diffusion import LatentDiffusion
from journey.models.ltx import Ltx
from journey.models.lumina_2 import Lumina2
from journey.models.network import check_known, unwrapped
from journey.models.pixart import PixArt
from journey.models.qwen_image import QwenImage
from journey.models.sana import Sana
from journey.models.score_sde import ScoreDenoiser
from journey.models.stable_audio import StableAudio
from journey.models.stable_diffusion import StableDiffusion
from journey.models.stable_diffusion_3 import StableDiffusion3
from journey.models.stable_diffusion_xl import StableDiffusionXL
from journey.models.wan import Wan
from journey.models.weight_files import saved_dtype
from journey.models.z_image import ZImage

# Which adapter takes which diffusers pipeline, and its subclasses. By name, because importing a pipeline imports its
# text encoders' library, which unconditional models do without.
_ADAPTERS: dict[str, Callable[..., Denoiser]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "Flux2Pipeline": Flux2,
    "Flux2KleinPipeline": Flux2Klein,
    "ZImagePipeline": ZImage,
    "QwenImagePipeline": QwenImage,
    "SanaPipeline": Sana,
    "ChromaPipeline": Chroma,
    "Lumina2Pipeline": Lumina2,
    "AuraFlowPipeline": AuraFlow,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArt,
    "HunyuanDiTPipeline": HunyuanDiT,
    "HiDreamImagePipeline": HiDream,
    "WanPipeline": Wan,
    "LTXPipeline": Ltx,
    "HunyuanVideoPipeline": HunyuanVideo,
    "CogVideoXPipeline": CogVideoX,
    "StableAudioPipeline": StableAudio,
    "DiTPipeline": DiT,
    "LDMPipeline": LatentDiffusion,
}

# Parts of the names of other pipelines, and what keeps them from being measured.
_IMAGE = (
    "it is given an image besides the text, which items of a dataset do not have; give the family's pipeline from text"
)
_REASONS = {
    "Edit|Kontext|Pix2Pix|Inpaint|Img2Img|ImageTo|Image2Video|I2V|VACE|Fill|Redux|Visual|Upscale|VideoTo": _IMAGE,
    "Cascade|Prior|Decoder|Combined|UnCLIP|^IF|Kandinsky(?![356])|Wuerstchen|ShapE": "it makes an image in stages, by "
    "networks that are trained apart",
    "Control|Adapter|AnimateDiff|WanAnimate|PAG": "its network is led by another part, which no adapter tells; give "
    "the family's pipeline without that part",
    "Consistency|Sprint|Turbo|Lightning|Distill": "it was distilled and has no denoising loss; measure the model that "
    "it came from, and record with it: Trajectory.on(model)",
}

# What diffusers calls the argument: the older name only warns by now.
_DTYPE = "dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype"


def as_denoiser(model: Any, *, latents: str = "mean", seed: int = 0) -> Denoiser:
    """Return the denoiser of a model in any of the accepted forms.

    Args:
        model: A ``Denoiser``; a diffusers pipeline (``DDPMPipeline``, ``DDIMPipeline``, or one of those that
            ``journey.models.load`` lists by name); a pair ``(network, scheduler)``; or the path or repo id of a saved
            pipeline, which is read from the local cache where there is no network.
        latents: Of models with a VAE: the ``"mean"`` of its posterior, or one ``"sample"``, keyed by seed and sample.
        seed: Names the samples.

    Returns:
        The denoiser, sharing the network with ``model``.

    Raises:
        TypeError: If ``model`` is none of these.
        ValueError: As ``Denoiser``, or if ``latents`` is ``"sample"`` for anything but a pipeline with a VAE.
        OSError: If a saved pipeline is neither at the path, nor in the cache, nor to be had.
    """
    if isinstance(model, str | os.PathLike):
        model = load_pipeline(model)
    if isinstance(model, DiffusionPipeline):
        for name in (kind.__name__ for kind in type(model).__mro__):
            if name in _ADAPTERS:
                return _ADAPTERS[name](model, latents=latents, seed=seed)
    if latents != "mean":
        raise ValueError(f'latents must be "mean" but for a pipeline with a VAE, got {latents!r}')
    if isinstance(model, Denoiser):
        return model
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], nn.Module):
        return _bare(*model)
    if isinstance(model, DiffusionPipeline):
        parts = {name: part for name, part in vars(model).items() if isinstance(part, nn.Module)}
        if list(parts) == ["unet"] and hasattr(model, "scheduler"):
            return _bare(parts["unet"], model.scheduler)
        raise TypeError(
            f"model must be one of {', '.join(_ADAPTERS)} or a pipeline of unet and scheduler alone, got "
            f"{type(model).__name__} of {', '.join(parts)}: {_why_not(type(model))}"
        )
    raise TypeError(
        "model must be a diffusers pipeline, a pair (network, scheduler), or the path of a saved pipeline, "
        f"got {type(model).__name__}"
    )


def _why_not(kind: type) -> str:
    """Why a pipeline is not covered, as far as its name tells."""
    for pattern, reason in _REASONS.items():
        if any(re.search(pattern, base.__name__) for base in kind.__mro__ if issubclass(base, DiffusionPipeline)):
            return reason
    return "no adapter knows what its network must be told"


def _bare(network: nn.Module, scheduler: Any) -> Denoiser:
    """The denoiser of a network alone: conditional if it cannot run without being told something."""
    network = unwrapped(network)
    check_known(network)
    config = getattr(network, "config", None)
    more = [name for name in ("addition_embed_type", "time_cond_proj_dim") if getattr(config, name, None) is not None]
    if more:
        raise TypeError(
            f"network must take an image, a time and one condition, got {type(network).__name__} with "
            f"{' and '.join(more)}; give the pipeline of Stable Diffusion XL, others are not covered"
        )
    states = signature(network.forward).parameters.get("encoder_hidden_states")
    required = [] if states is None or states.default is not states.empty else ["encoder_hidden_states"]
    if any(
        getattr(config, name, None) is not None
        for name in ("num_class_embeds", "class_embed_type", "num_embeds_ada_norm")
    ):
        required.append("class_labels")
    if not required:
        scored = any(kind.__name__ == "ScoreSdeVeScheduler" for kind in type(scheduler).__mro__)
        return (ScoreDenoiser if scored else Denoiser)(network, scheduler)
    if len(required) > 1:
        raise TypeError(
            f"network must be told one thing, got {type(network).__name__} that needs {' and '.join(required)}"
        )
    return ConditionalDenoiser(network, scheduler, name=required[0])


def load_pipeline(
    path: str | os.PathLike[str], *, dtype: str = "auto", variant: str | None = None
) -> DiffusionPipeline:
    """Load a saved pipeline; diffusers itself falls back to its cache when there is no network.

    Args:
        path: Path or repo id.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"`` for all parts, or ``"auto"``: each as it was saved.
        variant: Which of several files of weights, such as ``"fp16"``.

    Returns:
        The pipeline.

    Raises:
        OSError: If it is neither at the path, nor in the cache, nor to be had.
    """
    where = Path(path) if Path(path).exists() else os.fspath(path)
    options: dict[str, Any] = {} if variant is None else {"variant": variant}
    try:
        if dtype == "auto":
            where = Path(where if isinstance(where, Path) else DiffusionPipeline.download(where, **options))
            parts = [part for part in sorted(where.iterdir()) if part.is_dir()]
            found = {part.name: saved for part in parts if (saved := saved_dtype(part, variant)) is not None}
            if set(found.values()) - {torch.float32}:  # which diffusers takes itself
                # One for all where they agree: older versions of diffusers take no other.
                options[_DTYPE] = found if len(set(found.values())) > 1 else next(iter(found.values()))
        else:
            options[_DTYPE] = getattr(torch, dtype)
        pipeline: DiffusionPipeline = DiffusionPipeline.from_pretrained(where, **options)
    # Where no such path is, huggingface_hub finds fault with it as a repo id; an AttributeError is an unknown class.
    except (OSError, ValueError, AttributeError) as error:
        raise OSError(
            f"model must be the path of a saved pipeline or a repo id that is cached or reachable, got {where}: {error}"
        ) from error
    return pipeline
