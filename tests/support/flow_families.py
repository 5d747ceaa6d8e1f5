"""Tiny pipelines of the families of text-to-image transformers, with random weights, built without any download."""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import pytest
import torch
from cases import randn
from families import LATENT, SIZE, Captioned, make_clip, make_t5, make_tokenizer, make_vae
from torch import Tensor, nn

CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def make_chat_tokenizer() -> Any:
    """Words to numbers, behind a template that leaves the words alone."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def make_qwen3(kind: str = "Qwen3Model", width: int = 16) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=16,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        pad_token_id=0,
    )
    return getattr(transformers, kind)(config).eval()


def make_flow_scheduler(**changes: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**changes)


class ByHand:
    """A family: how its tiny pipeline is built, and what its official script and its pipeline do with a network."""

    takes_negatives = True
    # Which of the pipeline's arguments is its guidance, where it has several.
    guidance: str | None = None
    # Of an image in pixels: as ``record`` is told it, and as the autoencoder decodes it.
    size: tuple[int, ...] = SIZE
    decoded: tuple[int, ...] = (3, *SIZE)
    # Parts of the names of parameters that no rule covers.
    uncovered: tuple[str, ...] = ()
    # Parts of the names of those that the official script freezes too.
    frozen: tuple[str, ...] = ()

    def make(self) -> Any:
        """The pipeline."""
        raise NotImplementedError

    def dataset(self, num_samples: int) -> Captioned:
        """What it is trained on."""
        return Captioned(num_samples)

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        """The prediction of one row as the training script has it, ``time`` from the scheduler. [1, C, H, W]"""
        raise NotImplementedError

    def noised(self, scheduler: Any, x0: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The script's noised latents, its time and its target, from the scheduler's table, which descends."""
        index = len(scheduler.timesteps) - 1 - timestep
        sigma = scheduler.sigmas[index]
        return (1.0 - sigma) * x0 + sigma * noise, scheduler.timesteps[index], noise - x0

    def told(self, pipeline: Any, prompt: str, **options: Any) -> Any:
        """What the pipeline encodes a prompt as, once."""
        known = pipeline.__dict__.setdefault("told_by_hand", {})
        if prompt not in known:
            with torch.no_grad():
                known[prompt] = pipeline.encode_prompt([prompt], **options)
        return known[prompt]

    def latents(self, pipeline: Any, images: Tensor) -> Tensor:
        """What the script trains on."""
        config = pipeline.vae.config
        z = pipeline.vae.encode(images).latent_dist.mean
        return (z - (config.shift_factor or 0.0)) * config.scaling_factor

    def sample(self, pipeline: Any, start: Tensor, prompts: list[str], scale: float, negative: str | None) -> Tensor:
        """The pipeline's own samples from given noise, in latents of the model."""
        told = {} if negative is None else {"negative_prompt": [negative] * len(prompts)}
        return self.run(pipeline, start, prompts, guidance_scale=scale, **told)

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        height, width = SIZE
        shared = {"num_inference_steps": 5, "output_type": "latent", "height": height, "width": width}
        return pipeline(prompts, latents=start, **shared, **options).images


class ZImage(ByHand):
    def make(self) -> Any:
        from diffusers import ZImagePipeline, ZImageTransformer2DModel

        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[128, 16, 16],
        ).eval()
        return ZImagePipeline(
            scheduler=make_flow_scheduler(shift=3.0),
            vae=make_vae(shift_factor=0.1),
            text_encoder=make_qwen3(),
            tokenizer=make_chat_tokenizer(),
            transformer=transformer,
        )

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        states, _ = self.told(pipeline, prompt, do_classifier_free_guidance=False)
        (found,) = pipeline.transformer([noisy[0].unsqueeze(1)], (1000 - time) / 1000, states, return_dict=False)[0]
        return -found.squeeze(1)[None]


def make_qwen_vl() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    text = {
        "vocab_size": 16,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=14, video_token_id=15)
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


class QwenImage(ByHand):
    def make(self) -> Any:
        from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

        transformer = QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
        ).eval()
        vae = AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.7, 2.0, 1.0],
        ).eval()
        pipeline = QwenImagePipeline(
            scheduler=make_flow_scheduler(
                use_dynamic_shifting=True, shift_terminal=0.02, time_shift_type="exponential"
            ),
            vae=vae,
            text_encoder=make_qwen_vl(),
            tokenizer=make_tokenizer(),
            transformer=transformer,
        )
        # The published template is of words that the tiny tokenizer does not know.
        pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx = "two ugly {}", 2
        return pipeline

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        states, mask = self.told(pipeline, prompt)
        packed = pipeline._pack_latents(noisy, 1, 4, LATENT, LATENT)
        found = pipeline.transformer(
            hidden_states=packed,
            encoder_hidden_states=states,
            encoder_hidden_states_mask=mask,
            timestep=time / 1000,
            img_shapes=[(1, LATENT // 2, LATENT // 2)],
            return_dict=False,
        )[0]
        return pipeline._unpack_latents(found, *SIZE, pipeline.vae_scale_factor)[:, :, 0]

    def latents(self, pipeline: Any, images: Tensor) -> Tensor:
        config = pipeline.vae.config
        mean = torch.tensor(config.latents_mean).view(1, 4, 1, 1, 1)
        deviation = 1.0 / torch.tensor(config.latents_std).view(1, 4, 1, 1, 1)
        return ((pipeline.vae.encode(images[:, :, None]).latent_dist.mean - mean) * deviation)[:, :, 0]

    def sample(self, pipeline: Any, start: Tensor, prompts: list[str], scale: float, negative: str | None) -> Tensor:
        packed = pipeline._pack_latents(start, len(start), 4, LATENT, LATENT)
        told = {"negative_prompt": [negative or ""] * len(prompts), "true_cfg_scale": scale}
        found = self.run(pipeline, packed, prompts, **told)
        return pipeline._unpack_latents(found, *SIZE, pipeline.vae_scale_factor)[:, :, 0]


def make_deep(kind: str) -> nn.Module:
    """A language model with as many layers as the pipelines take states from."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=30,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


class Flux2(ByHand):
    kind, encoder, guidance_embeds, takes_negatives = "Flux2Pipeline", "Mistral", True, False

    def make(self) -> Any:
        import diffusers

        transformer = diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=self.guidance_embeds,
        ).eval()
        vae = diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        ).eval()
        vae.bn.running_mean.copy_(randn(16, seed=3))
        vae.bn.running_var.copy_(randn(16, seed=4).square() + 0.5)
        tokenizer = make_chat_tokenizer()
        if self.kind == "Flux2Pipeline":
            tokenizer.chat_template = CHAT.replace("['content']", "['content'][0]['text']")
        return getattr(diffusers, self.kind)(
            scheduler=make_flow_scheduler(use_dynamic_shifting=True),
            vae=vae,
            text_encoder=make_deep(self.encoder),
            tokenizer=tokenizer,
            transformer=transformer,
        )

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        states, text_ids = self.told(pipeline, prompt)
        patches = pipeline._patchify_latents(noisy)
        found = pipeline.transformer(
            hidden_states=pipeline._pack_latents(patches),
            timestep=time / 1000,
            guidance=torch.tensor([4.0]) if self.guidance_embeds else None,
            encoder_hidden_states=states,
            txt_ids=text_ids,
            img_ids=pipeline._prepare_latent_ids(patches),
            return_dict=False,
        )[0]
        unpacked = pipeline._unpack_latents_with_ids(found, pipeline._prepare_latent_ids(patches))
        return pipeline._unpatchify_latents(unpacked)

    def latents(self, pipeline: Any, images: Tensor) -> Tensor:
        return pipeline._unpatchify_latents(pipeline._encode_vae_image(images, None))

    def sample(self, pipeline: Any, start: Tensor, prompts: list[str], scale: float, negative: str | None) -> Tensor:
        patches = pipeline._patchify_latents(start)
        found = self.run(pipeline, patches, prompts, guidance_scale=scale)
        return pipeline._unpatchify_latents(
            pipeline._unpack_latents_with_ids(found, pipeline._prepare_latent_ids(patches))
        )

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        return super().run(pipeline, start, None, prompt=prompts, **options)


class Flux2Klein(Flux2):
    kind, encoder, guidance_embeds, takes_negatives = "Flux2KleinPipeline", "Qwen3", False, True

    def sample(self, pipeline: Any, start: Tensor, prompts: list[str], scale: float, negative: str | None) -> Tensor:
        patches = pipeline._patchify_latents(start)
        told = {}
        if negative is not None:
            # It takes no negative prompt in words.
            told["prompt_embeds"] = torch.cat([self.told(pipeline, prompt)[0] for prompt in prompts])
            told["negative_prompt_embeds"] = self.told(pipeline, negative)[0].repeat(len(prompts), 1, 1)
            prompts = None
        # Its latents come back in the scale of the VAE.
        z = pipeline._patchify_latents(self.run(pipeline, patches, prompts, guidance_scale=scale, **told))
        norm = pipeline.vae.bn
        deviation = (norm.running_var + pipeline.vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
        return pipeline._unpatchify_latents((z - norm.running_mean.view(1, -1, 1, 1)) / deviation)


def make_gemma() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma2Config(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    return transformers.Gemma2Model(config).eval()


class Sana(ByHand):
    def make(self) -> Any:
        from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel

        transformer = SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=LATENT,
            timestep_scale=0.5,
        ).eval()
        vae = AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            scaling_factor=0.41,
        ).eval()
        pipeline = SanaPipeline(
            tokenizer=make_tokenizer(),
            text_encoder=make_gemma(),
            vae=vae,
            transformer=transformer,
            scheduler=make_flow_scheduler(shift=3.0),
        )
        # It wants multiples of 32 pixels, as the published autoencoder does.
        pipeline.check_inputs = lambda *_: None
        return pipeline

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        instruction = signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        states, mask, _, _ = self.told(
            pipeline, prompt, do_classifier_free_guidance=False, complex_human_instruction=instruction
        )
        return pipeline.transformer(
            noisy,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=time * pipeline.transformer.config.timestep_scale,
            return_dict=False,
        )[0]

    def latents(self, pipeline: Any, images: Tensor) -> Tensor:
        return pipeline.vae.encode(images).latent * pipeline.vae.config.scaling_factor

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        return super().run(pipeline, start, prompts, use_resolution_binning=False, **options)


class Chroma(ByHand):
    def make(self) -> Any:
        from diffusers import ChromaPipeline, ChromaTransformer2DModel

        transformer = ChromaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ).eval()
        pipeline = ChromaPipeline(
            scheduler=make_flow_scheduler(use_dynamic_shifting=True),
            vae=make_vae(shift_factor=0.1),
            text_encoder=make_t5(),
            tokenizer=make_tokenizer(),
            transformer=transformer,
        )
        # Sums over 512 tokens, nearly all padding, would round more than the tests allow.
        pipeline.encode_prompt = partial(pipeline.encode_prompt, max_sequence_length=12)
        return pipeline

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        states, text_ids, mask, *_ = self.told(pipeline, prompt, do_classifier_free_guidance=False)
        packed = pipeline._pack_latents(noisy, 1, 4, LATENT, LATENT)
        found = pipeline.transformer(
            hidden_states=packed,
            timestep=time / 1000,
            encoder_hidden_states=states,
            txt_ids=text_ids,
            img_ids=pipeline._prepare_latent_image_ids(1, LATENT // 2, LATENT // 2, "cpu", torch.float32),
            attention_mask=pipeline._prepare_attention_mask(1, packed.shape[1], torch.float32, mask),
            return_dict=False,
        )[0]
        return pipeline._unpack_latents(found, *SIZE, pipeline.vae_scale_factor)

    def sample(self, pipeline: Any, start: Tensor, prompts: list[str], scale: float, negative: str | None) -> Tensor:
        packed = pipeline._pack_latents(start, len(start), 4, LATENT, LATENT)
        found = super().sample(pipeline, packed, prompts, scale, negative)
        return pipeline._unpack_latents(found, *SIZE, pipeline.vae_scale_factor)

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        return super().run(pipeline, start, prompts, max_sequence_length=12, **options)


class Lumina2(ByHand):
    def make(self) -> Any:
        from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

        transformer = Lumina2Transformer2DModel(
            sample_size=LATENT,
            patch_size=2,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(300, 16, 16),
            cap_feat_dim=16,
        ).eval()
        pipeline = Lumina2Pipeline(
            transformer=transformer,
            scheduler=make_flow_scheduler(shift=6.0, use_dynamic_shifting=True),
            vae=make_vae(shift_factor=0.1),
            text_encoder=make_gemma(),
            tokenizer=make_tokenizer(),
        )
        pipeline.vae_scale_factor = 2
        return pipeline

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        """As the pipeline has it; the script draws from a mirrored table, and has the same loss at one noise level."""
        states, mask, _, _ = self.told(pipeline, prompt, do_classifier_free_guidance=False)
        return -pipeline.transformer(
            hidden_states=noisy,
            timestep=1 - time / 1000,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]


class AuraFlow(ByHand):
    def make(self) -> Any:
        from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

        transformer = AuraFlowTransformer2DModel(
            sample_size=LATENT,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            out_channels=4,
            pos_embed_max_size=64,
        ).eval()
        # Its gates begin so small that hardly a prompt would make a difference.
        for p in transformer.time_step_proj.parameters():
            p.data.mul_(10)
        pipeline = AuraFlowPipeline(
            tokenizer=make_tokenizer(),
            text_encoder=make_t5(),
            vae=make_vae(),
            transformer=transformer,
            scheduler=make_flow_scheduler(shift=1.73),
        )
        # Sums over 256 tokens, nearly all padding, would round more than the tests allow.
        pipeline.encode_prompt = partial(pipeline.encode_prompt, max_sequence_length=12)
        return pipeline

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        states, *_ = self.told(pipeline, prompt, do_classifier_free_guidance=False)
        return pipeline.transformer(noisy, encoder_hidden_states=states, timestep=time / 1000, return_dict=False)[0]

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        return super().run(pipeline, start, prompts, max_sequence_length=12, **options)


class PixArtSigma(ByHand):
    kind, more = "PixArtSigmaPipeline", False

    def make(self) -> Any:
        import diffusers

        transformer = diffusers.PixArtTransformer2DModel(
            sample_size=LATENT,
            patch_size=2,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=12 if self.more else 8,
            cross_attention_dim=24 if self.more else 16,
            caption_channels=16,
            use_additional_conditions=self.more,
        ).eval()
        return getattr(diffusers, self.kind)(
            tokenizer=make_tokenizer(),
            text_encoder=make_t5(),
            vae=make_vae(),
            transformer=transformer,
            scheduler=diffusers.DPMSolverMultistepScheduler(),
        )

    def noised(self, scheduler: Any, x0: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from diffusers import DDPMScheduler

        return DDPMScheduler.from_config(scheduler.config).add_noise(x0, noise, timestep), timestep, noise

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        states, mask, *_ = self.told(pipeline, prompt, do_classifier_free_guidance=False)
        sizes = {"resolution": None, "aspect_ratio": None}
        if self.more:
            sizes = {"resolution": torch.tensor([SIZE]).float(), "aspect_ratio": torch.tensor([[1.0]])}
        return pipeline.transformer(
            noisy,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=time,
            added_cond_kwargs=sizes,
            return_dict=False,
        )[0].chunk(2, dim=1)[0]

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        return super().run(pipeline, start, prompts, use_resolution_binning=False, **options)


class PixArtAlpha(PixArtSigma):
    kind, more = "PixArtAlphaPipeline", True

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        # It tells the sizes to networks of 128 latents alone.
        pipeline.transformer.register_to_config(sample_size=128)
        found = super().run(pipeline, start, prompts, **options)
        pipeline.transformer.register_to_config(sample_size=LATENT)
        return found


def make_bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    return transformers.BertModel(config).eval()


class HunyuanDiT(ByHand):
    told_sizes = True

    def make(self) -> Any:
        import diffusers

        transformer = diffusers.HunyuanDiT2DModel(
            sample_size=LATENT,
            patch_size=1,
            in_channels=4,
            num_layers=4,
            num_attention_heads=2,
            attention_head_dim=8,
            hidden_size=16,
            cross_attention_dim=16,
            cross_attention_dim_t5=16,
            pooled_projection_dim=16,
            use_style_cond_and_image_meta_size=self.told_sizes,
        ).eval()
        return diffusers.HunyuanDiTPipeline(
            vae=make_vae(levels=4),
            text_encoder=make_bert(),
            tokenizer=make_tokenizer(),
            text_encoder_2=make_t5(),
            tokenizer_2=make_tokenizer(),
            transformer=transformer,
            scheduler=diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def noised(self, scheduler: Any, x0: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from diffusers import DDPMScheduler

        table = DDPMScheduler.from_config(scheduler.config)
        return table.add_noise(x0, noise, timestep), timestep, table.get_velocity(x0, noise, timestep)

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        from diffusers.models.embeddings import get_2d_rotary_pos_embed

        states, _, mask, _ = self.told(pipeline, prompt, do_classifier_free_guidance=False)
        with torch.no_grad():
            t5, _, t5_mask, _ = pipeline.encode_prompt(
                [prompt], do_classifier_free_guidance=False, text_encoder_index=1
            )
        rotations = get_2d_rotary_pos_embed(8, ((0, 0), (64, 64)), (2, 2), output_type="pt")
        return pipeline.transformer(
            noisy,
            time.float(),
            encoder_hidden_states=states,
            text_embedding_mask=mask,
            encoder_hidden_states_t5=t5,
            text_embedding_mask_t5=t5_mask,
            image_meta_size=torch.tensor([[1024.0, 1024.0, *SIZE, 0.0, 0.0]]),
            style=torch.tensor([0]),
            image_rotary_emb=rotations,
            return_dict=False,
        )[0].chunk(2, dim=1)[0]

    def run(self, pipeline: Any, start: Tensor, prompts: list[str], **options: Any) -> Tensor:
        return super().run(pipeline, start, prompts, use_resolution_binning=False, **options)


class HunyuanDiTWithoutSizes(HunyuanDiT):
    told_sizes = False


class HiDream(ByHand):
    uncovered = ("gate.weight",)
    frozen = (".experts.",)

    def make(self) -> Any:
        import diffusers

        transformers = pytest.importorskip("transformers")
        llama = transformers.LlamaConfig(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=256,
            pad_token_id=0,
            attn_implementation="eager",
        )
        transformer = diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[16, 16],
            text_emb_dim=32,
            num_routed_experts=3,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(LATENT, LATENT),
            llama_layers=[0, 2],
        ).eval()
        for name, p in transformer.named_parameters():
            p.requires_grad_(".experts." not in name)
        long = make_tokenizer()
        long.model_max_length = 12
        return diffusers.HiDreamImagePipeline(
            scheduler=make_flow_scheduler(shift=3.0),
            vae=make_vae(shift_factor=0.1),
            text_encoder=make_clip("CLIPTextModelWithProjection", length=128),
            tokenizer=make_tokenizer(),
            text_encoder_2=make_clip("CLIPTextModelWithProjection", length=128),
            tokenizer_2=make_tokenizer(),
            text_encoder_3=make_t5(),
            tokenizer_3=long,
            text_encoder_4=transformers.LlamaForCausalLM(llama).eval(),
            tokenizer_4=make_tokenizer(),
            transformer=transformer,
        )

    def call(self, pipeline: Any, noisy: Tensor, time: Tensor, prompt: str) -> Tensor:
        t5, _, llama, _, pooled, _ = self.told(pipeline, prompt, do_classifier_free_guidance=False)
        return -pipeline.transformer(
            hidden_states=noisy,
            timesteps=time,
            encoder_hidden_states_t5=t5,
            encoder_hidden_states_llama3=llama,
            pooled_embeds=pooled,
            return_dict=False,
        )[0]


FLOWS: dict[str, ByHand] = {
    "Z-Image": ZImage(),
    "Qwen-Image": QwenImage(),
    "FLUX.2 dev": Flux2(),
    "FLUX.2 Klein": Flux2Klein(),
    "SANA": Sana(),
    "Chroma": Chroma(),
    "Lumina 2": Lumina2(),
    "AuraFlow": AuraFlow(),
    "PixArt-sigma": PixArtSigma(),
    "PixArt-alpha": PixArtAlpha(),
    "HunyuanDiT": HunyuanDiT(),
    "HunyuanDiT 1.2": HunyuanDiTWithoutSizes(),
    "HiDream": HiDream(),
}


def make_flow(name: str, seed: int = 0) -> Any:
    """A tiny pipeline, quiet; what begins at zero is made random, as in ``families.make_family``."""
    return make_quiet(FLOWS[name], seed)


def make_quiet(family: ByHand, seed: int = 0) -> Any:
    """The same of a family that is given."""
    torch.manual_seed(seed)
    pipeline = family.make()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.default_sample_size = LATENT
    for network in (pipeline.transformer, getattr(pipeline, "transformer_2", None)):
        for i, p in enumerate([] if network is None else network.parameters()):
            if not p.any():
                p.data = 0.05 * randn(*p.shape, seed=i)
    return pipeline
