"""Which models are taken for what: by recognition alone, everything else is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import DDIMScheduler, DDPMPipeline, DiffusionPipeline
from families import make_clip, make_conditional_unet, make_tokenizer, make_vae
from models import make_scheduler, make_unet
from torch import nn

from journey.models.load import as_denoiser


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


def test_a_pipeline_of_unet_and_scheduler_alone_is_taken() -> None:
    for pipeline in (DDPMPipeline(make_unet(), make_scheduler()), OwnPipeline(make_unet(), make_scheduler())):
        assert as_denoiser(pipeline).network is pipeline.unet
