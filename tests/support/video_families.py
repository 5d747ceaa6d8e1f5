"""Tiny pipelines of the families of text-to-video transformers, and what their pipelines do with a network by hand."""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import Any

import pytest
import torch
from cases import randn
from families import Captioned, make_t5, make_tokenizer
from flow_families import ByHand, make_flow_scheduler
from torch import Tensor, nn

VIDEO = (5, 8, 8)  # frames, height, width


class Clips(Captioned):
    """Short colour videos with captions. [F, 3, H, W] each"""

    def __init__(self, num_samples: int = 3) -> None:
        super().__init__(num_samples)
        self.images = torch.tanh(randn(num_samples, VIDEO[0], 3, *VIDEO[1:], seed=11))


class Video(ByHand):
    """A family of videos."""

    size = VIDEO
    decoded = (VIDEO[0], 3, *VIDEO[1:])

    def dataset(self, num_samples: int) -> Captioned:
        return Clips(num_samples)

    def latents(self, pipeline: Any, images: Tensor) -> Tensor:
        return self.scaled(pipeline, pipeline.vae.encode(images.transpose(1, 2)).latent_dist.mean)

    def scaled(self, pipeline: Any, z: Tensor) -> Tensor:
        return z * pipeline.vae.config.scaling_factor

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        frames, height, width = VIDEO
        shared = {"num_inference_steps": 5, "output_type": "latent", "height": height, "width": width}
        return pipeline(prompts, latents=start, num_frames=frames, **shared, **options).frames


def with_short_texts(call: Any, tokens: int = 12) -> Any:
    """A pipeline's ``__call__`` for shorter texts: sums over 512 tokens, nearly all padding, round too much."""

    @wraps(call)
    def shorter(*arguments: Any, max_sequence_length: int = tokens, **options: Any) -> Any:
        return call(*arguments, max_sequence_length=max_sequence_length, **options)

    parameters = signature(call).parameters
    changed = {**parameters, "max_sequence_length": parameters["max_sequence_length"].replace(default=tokens)}
    shorter.__signature__ = signature(call).replace(parameters=list(changed.values()))
    return shorter


def make_umt5(width: int = 16) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.UMT5Config(
        vocab_size=16, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return transformers.UMT5EncoderModel(config).eval()


def make_wan_transformer() -> nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=16,
    ).eval()


class Wan(Video):
    def make(self) -> Any:
        from diffusers import AutoencoderKLWan, WanPipeline

        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.7, 2.0, 1.0],
            scale_factor_temporal=2,
            scale_factor_spatial=2,
        ).eval()

        class Short(WanPipeline):
            __call__ = with_short_texts(WanPipeline.__call__)

        pipeline = Short(
            tokenizer=make_tokenizer(),
            text_encoder=make_umt5(),
            vae=vae,
            scheduler=self.scheduler(),
            transformer=make_wan_transformer(),
        )
        # It wants multiples of 16 pixels, as the published autoencoder does.
        pipeline.check_inputs = lambda *_: None
        return pipeline

    def scheduler(self) -> Any:
        """The published one."""
        from diffusers import UniPCMultistepScheduler

        return UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
        )

    def noised(self, scheduler: Any, x0: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().noised(make_flow_scheduler(shift=3.0), x0, noise, timestep)

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        states, _ = self.told(pipeline, prompt, do_classifier_free_guidance=False, max_sequence_length=12)
        return pipeline.transformer(noisy, time, states, return_dict=False)[0]

    def scaled(self, pipeline: Any, z: Tensor) -> Tensor:
        config = pipeline.vae.config
        mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
        return (z - mean) / std


class Wan22(Wan):
    """Two experts: times of 875 and more go to the first."""

    def make(self) -> Any:
        pipeline = super().make()
        pipeline.register_modules(transformer_2=make_wan_transformer())
        pipeline.register_to_config(boundary_ratio=0.875)
        return pipeline

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        states, _ = self.told(pipeline, prompt, do_classifier_free_guidance=False, max_sequence_length=12)
        expert = pipeline.transformer if time >= 875 else pipeline.transformer_2
        return expert(noisy, time, states, return_dict=False)[0]


class Ltx(Video):
    def make(self) -> Any:
        from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

        transformer = LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=16,
        ).eval()
        vae = AutoencoderKLLTXVideo(
            latent_channels=4,
            block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            down_block_types=("LTXVideoDownBlock3D",) * 2,
            layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            spatio_temporal_scaling=(True, False),
            decoder_spatio_temporal_scaling=(True, False),
            decoder_inject_noise=(False,) * 3,
            upsample_residual=(False,) * 2,
            upsample_factor=(1,) * 2,
            patch_size=1,
            scaling_factor=0.8,
            timestep_conditioning=True,
        ).eval()
        vae.latents_mean.copy_(randn(4, seed=3))
        vae.latents_std.copy_(randn(4, seed=4).abs() + 0.5)
        pipeline = LTXPipeline(
            scheduler=make_flow_scheduler(use_dynamic_shifting=True),
            vae=vae,
            text_encoder=make_t5(),
            tokenizer=make_tokenizer(),
            transformer=transformer,
        )
        # It wants multiples of 32 pixels, as the published autoencoder does.
        pipeline.check_inputs = lambda **_: None
        return pipeline

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        states, mask, _, _ = self.told(pipeline, prompt, do_classifier_free_guidance=False)
        frames, height, width = noisy.shape[2:]
        found = pipeline.transformer(
            hidden_states=pipeline._pack_latents(noisy),
            encoder_hidden_states=states,
            timestep=time,
            encoder_attention_mask=mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(2 / 25, 2, 2),
            return_dict=False,
        )[0]
        return pipeline._unpack_latents(found, frames, height, width)

    def scaled(self, pipeline: Any, z: Tensor) -> Tensor:
        vae = pipeline.vae
        return pipeline._normalize_latents(z, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        found = super().run(pipeline, pipeline._pack_latents(start), prompts, **options)
        return pipeline._unpack_latents(found, *start.shape[2:])


VIDEOS: dict[str, ByHand] = {"Wan 2.1": Wan(), "Wan 2.2": Wan22(), "LTX": Ltx()}
