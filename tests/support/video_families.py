"""Tiny pipelines of the families of text-to-video transformers, and what their pipelines do with a network by hand."""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from cases import randn
from families import Captioned, make_clip, make_t5, make_tokenizer
from flow_families import ByHand, make_flow_scheduler
from torch import Tensor, nn

from journey.ops.keys import derive_key

VIDEO = (5, 8, 8)  # frames, height, width


class Media(Captioned):
    """Short colour videos or sounds with captions, of a shape."""

    def __init__(self, num_samples: int, shape: tuple[int, ...]) -> None:
        super().__init__(num_samples)
        self.images = torch.tanh(randn(num_samples, *shape, seed=11))


class Video(ByHand):
    """A family of videos."""

    size = VIDEO

    @property
    def decoded(self) -> tuple[int, ...]:
        return (self.size[0], 3, *self.size[1:])

    def dataset(self, num_samples: int) -> Captioned:
        return Media(num_samples, self.decoded)

    def latents(self, pipeline: Any, images: Tensor) -> Tensor:
        return self.scaled(pipeline, pipeline.vae.encode(images.transpose(1, 2)).latent_dist.mean)

    def scaled(self, pipeline: Any, z: Tensor) -> Tensor:
        return z * pipeline.vae.config.scaling_factor

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        frames, height, width = self.size
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


class HunyuanVideo(Video):
    size, takes_negatives, guidance = (5, 16, 16), False, "guidance_scale"

    def make(self) -> Any:
        import diffusers

        transformer = diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=16,
            pooled_projection_dim=16,
            rope_axes_dim=(4, 4, 4),
        ).eval()
        vae = diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 3,
            up_block_types=("HunyuanVideoUpBlock3D",) * 3,
            block_out_channels=(8,) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            spatial_compression_ratio=4,
        ).eval()
        return diffusers.HunyuanVideoPipeline(
            text_encoder=make_llama(),
            tokenizer=make_tokenizer(),
            transformer=transformer,
            vae=vae,
            scheduler=make_flow_scheduler(shift=7.0),
            text_encoder_2=make_clip(length=77),
            tokenizer_2=make_tokenizer(),
        )

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        states, pooled, mask = self.told(pipeline, prompt)
        return pipeline.transformer(
            hidden_states=noisy,
            timestep=time,
            encoder_hidden_states=states,
            encoder_attention_mask=mask.float(),
            pooled_projections=pooled,
            guidance=torch.tensor([6000.0]),
            return_dict=False,
        )[0]


class CogVideoX(Video):
    size = (5, 8, 8)
    rotary: ClassVar[dict[str, Any]] = {}
    tokens = 6

    def make(self) -> Any:
        import diffusers

        transformer = diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=4,
            text_embed_dim=16,
            num_layers=2,
            sample_width=4,
            sample_height=4,
            sample_frames=5,
            max_text_seq_length=self.tokens,
            **self.rotary,
        ).eval()
        vae = diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 2,
            up_block_types=("CogVideoXUpBlock3D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=2,
        ).eval()

        class Short(diffusers.CogVideoXPipeline):
            __call__ = with_short_texts(diffusers.CogVideoXPipeline.__call__, self.tokens)

        return Short(
            tokenizer=make_tokenizer(),
            text_encoder=make_t5(),
            vae=vae,
            transformer=transformer,
            scheduler=self.solver()(
                prediction_type="v_prediction",
                rescale_betas_zero_snr=True,
                snr_shift_scale=1.0,
                timestep_spacing="trailing",
                clip_sample=False,
            ),
        )

    def solver(self) -> Any:
        from diffusers import CogVideoXDDIMScheduler

        return CogVideoXDDIMScheduler

    def noised(self, scheduler: Any, x0: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return scheduler.add_noise(x0, noise, timestep), timestep, scheduler.get_velocity(x0, noise, timestep)

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        states, _ = self.told(pipeline, prompt, do_classifier_free_guidance=False, max_sequence_length=self.tokens)
        rotations = pipeline._prepare_rotary_positional_embeddings(*self.size[1:], noisy.shape[2], torch.device("cpu"))
        found = pipeline.transformer(
            noisy.transpose(1, 2),
            encoder_hidden_states=states,
            timestep=time,
            image_rotary_emb=rotations if self.rotary else None,
            return_dict=False,
        )[0]
        return found.transpose(1, 2)

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        found = super().run(pipeline, start.transpose(1, 2), prompts, **options)
        return found.transpose(1, 2)


class CogVideoXRotary(CogVideoX):
    """As the larger one of 1.5, with its own solver and blocks of two frames."""

    rotary: ClassVar[dict[str, Any]] = {"use_rotary_positional_embeddings": True, "patch_size_t": 2}

    def solver(self) -> Any:
        from diffusers import CogVideoXDPMScheduler

        class Still(CogVideoXDPMScheduler):
            """Its noise would come in the order of the pipeline's latents, frames before channels."""

            def step(
                self, model_output: Tensor, old_pred_original_sample: Tensor | None, *arguments: Any, **options: Any
            ) -> Any:
                with mock.patch(
                    f"{CogVideoXDPMScheduler.__module__}.randn_tensor", lambda shape, **_: torch.zeros(shape)
                ):
                    return super().step(model_output, old_pred_original_sample, *arguments, **options)

        return Still

    def scaled(self, pipeline: Any, z: Tensor) -> Tensor:
        """The script copies the first frame."""
        z = super().scaled(pipeline, z)
        return torch.cat([z[:, :, :1], z], 2)


class StableAudio(ByHand):
    size = decoded = (32,)

    decoded = (2, 32)

    def dataset(self, num_samples: int) -> Captioned:
        return Media(num_samples, self.decoded)

    def make(self) -> Any:
        import diffusers

        transformer = diffusers.StableAudioDiTModel(
            sample_size=8,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=1,
            out_channels=4,
            cross_attention_dim=8,
            time_proj_dim=8,
            global_states_input_dim=16,
            cross_attention_input_dim=8,
        ).eval()
        vae = diffusers.AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[2, 2],
            channel_multiples=[1, 1],
            decoder_channels=8,
            decoder_input_channels=4,
            sampling_rate=4,
        ).eval()
        from diffusers.pipelines.stable_audio import StableAudioProjectionModel

        return diffusers.StableAudioPipeline(
            vae=vae,
            text_encoder=make_t5(),
            projection_model=StableAudioProjectionModel(16, 8, 0, 32).eval(),
            tokenizer=make_tokenizer(),
            transformer=transformer,
            scheduler=diffusers.CosineDPMSolverMultistepScheduler(solver_order=2, sigma_data=1.0),
        )

    def latents(self, pipeline: Any, images: Tensor) -> Tensor:
        return pipeline.vae.encode(images).latent_dist.mean

    def noised(self, scheduler: Any, x0: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As stable-audio-tools: an angle, and the velocity at it."""
        time = scheduler.timesteps[len(scheduler.timesteps) - 1 - timestep]
        cosine, sine = (time * torch.pi / 2).cos(), (time * torch.pi / 2).sin()
        return cosine * x0 + sine * noise, time, cosine * noise - sine * x0

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        states = self.told(pipeline, prompt, device="cpu", do_classifier_free_guidance=False)
        with torch.no_grad():
            begin, end = pipeline.encode_duration(0.0, 8.0, "cpu", False, 1)
        return pipeline.transformer(
            noisy,
            time,
            encoder_hidden_states=torch.cat([states, begin, end], 1),
            global_hidden_states=torch.cat([begin, end], 2),
            rotary_embedding=get_1d_rotary_pos_embed(4, 9, use_real=True, repeat_interleave_real=False),
            return_dict=False,
        )[0]

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        # Those that recording has for its first image.
        generators = [torch.Generator("cpu").manual_seed(derive_key(4, "sampler", 0)) for _ in prompts]
        found = pipeline(
            prompts, latents=start, num_inference_steps=5, output_type="latent", generator=generators, **options
        )
        return found.audios


def make_llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return transformers.LlamaModel(config).eval()


VIDEOS: dict[str, ByHand] = {
    "Wan 2.1": Wan(),
    "Wan 2.2": Wan22(),
    "LTX": Ltx(),
    "HunyuanVideo": HunyuanVideo(),
    "CogVideoX": CogVideoX(),
    "CogVideoX rotary": CogVideoXRotary(),
    "Stable Audio": StableAudio(),
}
