"""A LoRA that was trained on captioned images: which of them are behind what it draws for a prompt?

Only the adapter is measured. The pipeline is a tiny one of random weights.
"""

import argparse

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from tokenizers import Tokenizer, models
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

import journey

BLOCKS = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
SIZES = {"sample_size": 8, "block_out_channels": [32], "norm_num_groups": 4, "cross_attention_dim": 512}


def make_pipeline(data: list[dict]) -> StableDiffusionPipeline:
    """Train an adapter. Yours is there: ``from_pretrained(...)``, then ``load_lora_weights(...)``."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "red": 1, "green": 2, "blue": 3}, "<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", model_max_length=2)
    encoder = CLIPTextModel(CLIPTextConfig(num_hidden_layers=1)).eval()
    unet = UNet2DConditionModel(**BLOCKS, **SIZES, mid_block_type=None, layers_per_block=1).eval()
    unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=r".*(to_[qkv]|to_out\.0|conv[12]|conv_(in|out))"))
    vae = AutoencoderKL(block_out_channels=[8], norm_num_groups=1, scaling_factor=8.0).eval()
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(vae, encoder, tokenizer, unet, scheduler, None, None, None, False)
    encoded = journey.as_denoiser(pipeline).encode(data, range(48))
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-2)
    for _ in range(100):
        i, t, noise = torch.randint(48, (32,)), torch.randint(1000, (32,)), torch.randn(32, 4, 8, 8)
        x0, states = encoded.x0[i], encoded.condition["encoder_hidden_states"][i]
        error = unet(scheduler.add_noise(x0, noise, t), t, states).sample - scheduler.get_velocity(x0, noise, t)
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    return pipeline


def main() -> None:
    """Featurize the adapter, record, score, show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/lora", help="folder of the features")
    out = parser.parse_args().out
    torch.manual_seed(0)
    names = ["red", "green", "blue"] * 16
    data = [{"image": torch.eye(3)[i % 3].view(3, 1, 1) - torch.rand(3, 8, 8) / 5, "text": names[i]} for i in range(48)]
    pipeline = make_pipeline(data)
    features = journey.featurize(pipeline, data, f"{out}/features")
    print(f"measured: {features.featurizer.engine.num_parameters:,} of {pipeline.unet.num_parameters():,} parameters")
    trajectory = journey.record(pipeline, prompt=names[:3], num_inference_steps=10, guidance_scale=1)
    scores = journey.score(features, trajectory, interval=(0, 1000))  # the mean over all steps
    for prompt, ids in zip(trajectory.prompts, scores.top(k=8).proponents.ids[:, 0].tolist(), strict=True):
        print(f"{prompt}: {', '.join(names[i] for i in ids)}")


if __name__ == "__main__":
    main()
