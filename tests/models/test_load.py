"""Which models are taken for what: by recognition alone, everything else is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import DDIMScheduler, DDPMPipeline, DiffusionPipeline
from families import make_clip, make_conditional_unet, make_family, make_tokenizer, make_vae
from models import make_scheduler, make_unet
from torch import nn

from journey.models.load import _ADAPTERS, as_denoiser
from journey.models.network import _PIPELINES, check_known

# Of UNet2DModel, UNet2DConditionModel and DiTTransformer2DModel.
_TAKEN_ALONE = {"StableDiffusionPipeline", "StableDiffusionXLPipeline", "DiTPipeline", "LDMPipeline"}


def text_pipeline() -> Any:
    from diffusers import LDMTextToImagePipeline

    return LDMTextToImagePipeline(
        vqvae=make_vae(),
        bert=make_clip(),
        tokenizer=make_tokenizer(),
        unet=make_conditional_unet(),
        scheduler=DDIMScheduler(),
    )


class OwnPipeline(DiffusionPipeline):
    """A pipeline of somebody's own, with a part that no adapter knows."""

    def __init__(self, unet: nn.Module, scheduler: Any, refiner: nn.Module | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.refiner = refiner


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text_pipeline, "got LDMTextToImagePipeline of .*vqvae"),
        (lambda: OwnPipeline(make_unet(), make_scheduler(), make_unet()), "got OwnPipeline of unet, refiner"),
    ],
)
def test_a_pipeline_with_a_part_that_no_adapter_knows_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"or a pipeline of unet and scheduler alone, {message}"):
        as_denoiser(make())


def edit_pipeline(name: str) -> Any:
    """Of the parts that the family's pipeline has, whose class alone is looked at."""
    import diffusers

    pipeline = object.__new__(getattr(diffusers, name))
    pipeline.transformer, pipeline.vae = make_conditional_unet(), make_vae()
    return pipeline


REASONS = {
    "FluxKontextPipeline": "is given an image besides the text",
    "QwenImageEditPipeline": "is given an image besides the text",
    "QwenImageEditPlusPipeline": "is given an image besides the text",
    "StableDiffusionInpaintPipeline": "is given an image besides the text",
    "WanImageToVideoPipeline": "is given an image besides the text",
    "StableDiffusionControlNetPipeline": "network is led by another part",
    "LatentConsistencyModelPipeline": "was distilled and has no denoising loss",
    "StableCascadePriorPipeline": "makes an image in stages",
    "MarigoldDepthPipeline": "no adapter knows what its network must be told",
}


@pytest.mark.parametrize("name", REASONS)
def test_a_pipeline_of_another_kind_is_refused_by_name_with_the_reason(name: str) -> None:
    with pytest.raises(TypeError, match=f"got {name} of transformer, vae: .*{REASONS[name]}"):
        as_denoiser(edit_pipeline(name))


def test_every_network_of_a_family_is_refused_alone_with_the_pipeline_that_knows_it() -> None:
    import diffusers

    known = {pipeline for names in _PIPELINES.values() for pipeline in names.split(" or ")}
    assert known == {name for name in _ADAPTERS if name not in _TAKEN_ALONE}
    for network, pipeline in _PIPELINES.items():
        bare = object.__new__(getattr(diffusers, network))
        with pytest.raises(TypeError, match=f"got {network}: give its {pipeline}$"):
            check_known(bare)


def test_a_pipeline_without_its_network_is_refused() -> None:
    pipeline = make_family("Stable Diffusion")
    pipeline.unet = None
    with pytest.raises(TypeError, match=r"network of the model must be a torch\.nn\.Module, got NoneType"):
        as_denoiser(pipeline)


def test_a_pipeline_of_unet_and_scheduler_alone_is_taken() -> None:
    for pipeline in (DDPMPipeline(make_unet(), make_scheduler()), OwnPipeline(make_unet(), make_scheduler())):
        assert as_denoiser(pipeline).network is pipeline.unet
