"""Tiny pipelines of every family of models, with random weights, built without any download."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import randn
from torch import Tensor, nn

SIZE = (16, 16)  # pixels
LATENT = 8  # latents in each direction
PROMPTS = ("a red apple", "two green pears", "apple")
WORDS = ("a", "red", "apple", "two", "green", "pears", "ugly")


def make_tokenizer() -> Any:
    """Words to numbers; 0 pads, 1 ends, 2 is unknown."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    vocabulary = {word: i for i, word in enumerate(("<pad>", "<eos>", "<unk>", *WORDS))}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=6
    )


def make_clip(kind: str = "CLIPTextModel", width: int = 16, length: int = 6) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=16,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=width,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=0,
    )
    return getattr(transformers, kind)(config).eval()


def make_t5(width: int = 16) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=16, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return transformers.T5EncoderModel(config).eval()


def make_vae(channels: int = 4, shift_factor: float | None = None, levels: int = 2) -> nn.Module:
    """Halves the size, once less than it has levels; latents of ``channels``."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=0.7,
        shift_factor=shift_factor,
        use_quant_conv=shift_factor is None,
        use_post_quant_conv=shift_factor is None,
    ).eval()


def make_conditional_unet(channels: int = 4, width: int = 16, sample_size: int = LATENT, **changes: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=width,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        **changes,
    ).eval()


def stable_diffusion(prediction_type: str = "epsilon") -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=make_clip(),
        tokenizer=make_tokenizer(),
        unet=make_conditional_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(prediction_type: str = "epsilon", *, zeros: bool = True) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = make_tokenizer()
    return StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=make_clip(),
        tokenizer=tokenizer,
        text_encoder_2=make_clip("CLIPTextModelWithProjection"),
        tokenizer_2=tokenizer,
        unet=make_conditional_unet(
            width=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


def stable_diffusion_xl_edm(kind: str, prediction_type: str) -> Any:
    """With latents that are normalised by channel, as those of Playground v2.5."""
    import diffusers

    pipeline = stable_diffusion_xl()
    pipeline.scheduler = getattr(diffusers, kind)(prediction_type=prediction_type)
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.5, 2.0, 1.0]}
    pipeline.vae.register_to_config(**statistics)
    return pipeline


def dit() -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        norm_num_groups=4,
        sample_size=LATENT,
        patch_size=2,
        num_embeds_ada_norm=1000,
    ).eval()
    return DiTPipeline(transformer, make_vae(), DDIMScheduler(clip_sample=False))


def stable_diffusion_3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ).eval()
    tokenizer = make_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_vae(shift_factor=0.1),
        text_encoder=make_clip("CLIPTextModelWithProjection"),
        tokenizer=tokenizer,
        text_encoder_2=make_clip("CLIPTextModelWithProjection"),
        tokenizer_2=tokenizer,
        text_encoder_3=make_t5(32),
        tokenizer_3=tokenizer,
    )


def flux(guidance_embeds: bool = True) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    tokenizer = make_tokenizer()
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=make_vae(shift_factor=0.1),
        text_encoder=make_clip(),
        tokenizer=tokenizer,
        text_encoder_2=make_t5(32),
        tokenizer_2=tokenizer,
        transformer=transformer,
    )
    pipeline.default_sample_size = LATENT
    return pipeline


FAMILIES: dict[str, Any] = {
    "Stable Diffusion": stable_diffusion,
    "Stable Diffusion v_prediction": lambda: stable_diffusion("v_prediction"),
    "Stable Diffusion XL": stable_diffusion_xl,
    "Stable Diffusion XL EDM": lambda: stable_diffusion_xl_edm("EDMDPMSolverMultistepScheduler", "epsilon"),
    "Stable Diffusion XL EDM v_prediction": lambda: stable_diffusion_xl_edm("EDMEulerScheduler", "v_prediction"),
    "DiT": dit,
    "Stable Diffusion 3": stable_diffusion_3,
    "Flux": flux,
}


def make_family(name: str, seed: int = 0) -> Any:
    """A tiny pipeline, quiet. Parameters that begin at zero (gates, last layers) are made random: gradients vanish."""
    torch.manual_seed(seed)
    pipeline = FAMILIES[name]()
    pipeline.set_progress_bar_config(disable=True)
    network = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    for i, p in enumerate(network.parameters()):
        if not p.any():
            p.data = 0.05 * randn(*p.shape, seed=i)
    return pipeline


class Captioned:
    """Colour images with captions or labels; counts how often each is read."""

    def __init__(self, num_samples: int = 3, *, several: bool = False) -> None:
        self.images = torch.tanh(randn(num_samples, 3, *SIZE, seed=11))
        self.several = several
        self.reads = [0] * num_samples

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads[index] += 1
        caption = PROMPTS[index % len(PROMPTS)]
        captions: Any = [caption, "a red pears", "two"] if self.several else caption
        return {"image": self.images[index], "text": captions, "label": 5 + index}


def start_noise(num_rows: int, channels: int = 4) -> Tensor:
    return randn(num_rows, channels, LATENT, LATENT, seed=21)
