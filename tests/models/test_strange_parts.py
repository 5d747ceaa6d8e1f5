"""Models with strange, wrapped or missing parts are measured rightly, or refused in words that say what to do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import peft
from cases import randn
from families import LATENT, Captioned, make_conditional_unet, make_family
from models import assert_same_gradients, make_scheduler, make_unet, one_at_a_time
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import journey
from journey.measure.draws import StratifiedDraws
from journey.models.condition import Condition
from journey.models.conditional import ConditionalDenoiser
from journey.models.load import as_denoiser
from journey.projectors.exact import Identity

OPTIONS: dict[str, Any] = {
    "draws": StratifiedDraws(num_draws=2),
    "projector": Identity(),
    "measurement": journey.TrainingLoss(),
    "row": "float32",
    "progress": False,
}


def check_features(network: nn.Module, inner: nn.Module, dataset: list[dict[str, Any]], told: str, path: Path) -> None:
    """Features of a pair are autograd's gradients of the training loss, one image at a time."""
    scheduler = make_scheduler()
    features = journey.featurize((network, scheduler), dataset, path, **OPTIONS).matrix()
    ids, draws = list(range(len(dataset))), OPTIONS["draws"]
    shape = tuple(dataset[0]["image"].shape)
    times, noise = draws.timesteps(ids, 100).flatten(), draws.noise(ids, shape, torch.device("cpu")).flatten(0, 2)
    rows = torch.stack([item["image"] for item in dataset]).repeat_interleave(2, 0)
    key = "label" if told == "class_labels" else told
    conditions = torch.stack([torch.as_tensor(item[key]) for item in dataset]).repeat_interleave(2, 0)

    def losses(chosen: slice) -> Tensor:
        noisy = scheduler.add_noise(rows[chosen], noise[chosen], times[chosen])
        prediction = inner(noisy, timestep=times[chosen], **{told: conditions[chosen]}).sample
        return (prediction - noise[chosen]).square().flatten(1).mean(1)

    assert_same_gradients(inner, features, one_at_a_time(inner, losses, len(dataset), 2))


def make_dit(**changes: Any) -> Any:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    fields = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "num_layers": 1}
    more = {"norm_num_groups": 4, "sample_size": LATENT, "patch_size": 2, "num_embeds_ada_norm": 10}
    network = DiTTransformer2DModel(**{**fields, **more, **changes}).eval()
    for i, p in enumerate(network.parameters()):
        p.data = p.data if p.any() else 0.05 * randn(*p.shape, seed=i)
    return network


def wrapped(network: nn.Module) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    return peft.get_peft_model(network, config).eval()


def test_a_bare_dit_is_told_its_labels(tmp_path: Path) -> None:
    dataset = [{"image": randn(4, LATENT, LATENT, seed=i), "label": 2 + i} for i in range(2)]
    network = make_dit()
    check_features(network, network, dataset, "class_labels", tmp_path)


def test_a_peft_model_in_a_pair_is_its_network(tmp_path: Path) -> None:
    network = wrapped(make_conditional_unet())
    items = [{"image": randn(4, LATENT, LATENT, seed=i), "encoder_hidden_states": randn(6, 16, seed=i)} for i in (1, 2)]
    check_features(network, network.get_base_model(), items, "encoder_hidden_states", tmp_path / "text")
    network = wrapped(make_unet(num_class_embeds=4))
    items = [{"image": randn(1, 8, 8, seed=i), "label": i} for i in (1, 2)]
    check_features(network, network.get_base_model(), items, "class_labels", tmp_path / "classes")


def test_a_peft_model_in_a_pipeline_is_its_network(tmp_path: Path) -> None:
    pipeline = make_family("Stable Diffusion")
    unet = pipeline.unet
    pipeline.unet = wrapped(unet)
    assert as_denoiser(pipeline).network is unet
    found = journey.featurize(pipeline, Captioned(2), tmp_path / "f", **OPTIONS).matrix()  # compared with autograd
    assert found.any(1).all()


@pytest.mark.parametrize("name", ["Stable Diffusion 3", "Flux"])
def test_a_bare_transformer_is_refused_with_the_pipeline_that_knows_it(name: str) -> None:
    pipeline = make_family(name)
    kinds = f"got {type(pipeline.transformer).__name__}: give its {type(pipeline).__name__}"
    with pytest.raises(TypeError, match=f"network must be one of .*, UNet2DModel or a module of your own, {kinds}"):
        as_denoiser((pipeline.transformer, pipeline.scheduler))


def test_a_bare_network_of_diffusers_that_no_adapter_knows_is_refused() -> None:
    from diffusers import UNet1DModel

    network = UNet1DModel(block_out_channels=(8, 8, 8)).eval()
    for make in (as_denoiser, lambda pair: ConditionalDenoiser(*pair)):
        with pytest.raises(TypeError, match="got UNet1DModel: no adapter knows what it must be told besides"):
            make((network, make_scheduler()))


@pytest.mark.parametrize("network", [make_unet(num_class_embeds=4), make_dit(num_embeds_ada_norm=3)])
def test_labels_without_a_row_are_refused(network: nn.Module, tmp_path: Path) -> None:
    denoiser, shape = as_denoiser((network, make_scheduler())), (network.config.in_channels, 8, 8)
    for label in (4, -1):
        message = rf"must have class labels in 0\.\.3, got \[{label}\]"
        with pytest.raises(ValueError, match=message):
            journey.featurize(denoiser, [{"image": torch.zeros(shape), "label": label}], tmp_path, **OPTIONS)
        told = Condition({"class_labels": torch.tensor([label])})
        with pytest.raises(ValueError, match=message):
            journey.record(denoiser, condition=told, num_inference_steps=2, progress=False)


def tiny_vae() -> nn.Module:
    from diffusers import AutoencoderTiny

    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return AutoencoderTiny(**channels, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()


def asymmetric_vae() -> nn.Module:
    from diffusers import AsymmetricAutoencoderKL

    down = {"down_block_types": ("DownEncoderBlock2D",) * 2, "down_block_out_channels": (8, 8)}
    up = {"up_block_types": ("UpDecoderBlock2D",) * 2, "up_block_out_channels": (8, 8)}
    return AsymmetricAutoencoderKL(**down, **up, norm_num_groups=4, scaling_factor=0.5).eval()


@pytest.mark.parametrize("make", [tiny_vae, asymmetric_vae])
def test_other_autoencoders_encode_and_decode_as_in_the_pipeline(make: Any, tmp_path: Path) -> None:
    pipeline = make_family("Stable Diffusion")
    pipeline.register_modules(vae=make())
    denoiser, images = as_denoiser(pipeline), torch.stack([item["image"] for item in Captioned(2)])
    with torch.no_grad():
        output = pipeline.vae.encode(images)
        mean = output.latents if hasattr(output, "latents") else output.latent_dist.mean
        decoded = pipeline.vae.decode(mean).sample
    latents = denoiser.encode_images(images, [0, 1])
    torch.testing.assert_close(latents, mean * pipeline.vae.config.scaling_factor)
    torch.testing.assert_close(denoiser.decode(latents), decoded.clamp(-1, 1))
    assert journey.featurize(pipeline, Captioned(2), tmp_path, **OPTIONS).matrix().any(1).all()


def test_what_an_autoencoder_cannot_do_is_refused() -> None:
    pipeline = make_family("Stable Diffusion")
    pipeline.register_modules(vae=tiny_vae())
    with pytest.raises(ValueError, match='latents must be "mean" for AutoencoderTiny, which has no posterior'):
        as_denoiser(pipeline, latents="sample")
    pipeline.vae = None
    with pytest.raises(TypeError, match=r"vae of the pipeline must be one of .*AutoencoderKL, .*got NoneType"):
        as_denoiser(pipeline)


EMBEDDINGS = ["Stable Diffusion", "Stable Diffusion XL", "Stable Diffusion 3", "Flux"]


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_ready_embeddings_stand_for_dropped_text_encoders(name: str, tmp_path: Path) -> None:
    pipeline, dataset = make_family(name), Captioned(2)
    wanted = journey.featurize(pipeline, dataset, tmp_path / "f", **OPTIONS).matrix()
    denoiser = as_denoiser(pipeline)
    told = denoiser.encode_prompt([item["text"] for item in dataset])
    items = [
        {"image": item["image"], **{part: told[part][i] for part in denoiser.embeddings}}
        for i, item in enumerate(dataset)
    ]
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if hasattr(pipeline, part):
            setattr(pipeline, part, None)
    found = journey.featurize(pipeline, items, tmp_path / "g", **OPTIONS).matrix()
    # The prompts were encoded in a batch of another size.
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())
    options: dict[str, Any] = {"num_inference_steps": 2, "progress": False}
    one = told.select(slice(0, 1))
    assert journey.record(pipeline, condition=one, guidance_scale=1.0, **options).images.isfinite().all()
    with pytest.raises(ValueError, match=r"text_encoder.* of the pipeline must be there to read a prompt, got None"):
        journey.record(pipeline, prompt="two", **options)
    with pytest.raises(ValueError, match=rf"dataset\[0\] must carry {' and '.join(denoiser.embeddings)}, for text_enc"):
        journey.featurize(pipeline, dataset, tmp_path / "h", **OPTIONS)


def test_a_loaded_ip_adapter_is_refused() -> None:
    pipeline = make_family("Stable Diffusion")
    pipeline.unet.encoder_hid_proj = nn.Linear(4, 4)
    pipeline.unet.config.encoder_hid_dim_type = "ip_image_proj"
    with pytest.raises(ValueError, match=r"got one with an IP-Adapter .*call unload_ip_adapter"):
        as_denoiser(pipeline)


def test_parts_that_are_offloaded_to_the_meta_device_are_refused() -> None:
    for part in ("unet", "vae", "text_encoder"):
        pipeline = make_family("Stable Diffusion")
        setattr(pipeline, part, getattr(pipeline, part).to("meta"))
        named = "model" if part == "unet" else part
        with pytest.raises(ValueError, match=f"{named} must have its parameters at hand, .* enable_sequential_cpu_off"):
            as_denoiser(pipeline)


@pytest.mark.parametrize("function", [checkpoint, partial(checkpoint, use_reentrant=True)])
def test_reentrant_checkpointing_is_refused_and_the_other_is_taken(function: Any) -> None:
    pipeline = make_family("Stable Diffusion")
    pipeline.unet.enable_gradient_checkpointing()
    as_denoiser(pipeline)
    pipeline.unet.enable_gradient_checkpointing(gradient_checkpointing_func=function)
    with pytest.raises(ValueError, match=r"gradient checkpointing must not be reentrant, .* got use_reentrant=True in"):
        as_denoiser(pipeline)
