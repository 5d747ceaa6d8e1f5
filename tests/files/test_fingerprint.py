"""Fingerprints are equal exactly when names, dtypes, shapes and bytes are."""

from __future__ import annotations

import json

import pytest
import torch
from cases import DEVICES, randn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from journey.files.fingerprint import TensorFingerprint, canonical_json, fingerprint_json, fingerprint_tensors

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


def tensors() -> dict[str, Tensor]:
    return {"weight": randn(3, 4), "bias": randn(3, seed=1), "steps": torch.tensor(7), "empty": torch.empty(0, 5)}


@given(st.permutations(sorted(tensors())))
def test_tensor_fingerprint_forgets_the_order(names: list[str]) -> None:
    named = tensors()
    assert fingerprint_tensors((name, named[name]) for name in names) == fingerprint_tensors(named)


@pytest.mark.parametrize("device", DEVICES)
def test_tensor_fingerprint_forgets_device_strides_and_gradients(device: str) -> None:
    plain = randn(4, 6)
    variants = [plain.to(device), plain.T.contiguous().T, plain.clone().requires_grad_(), torch.nn.Parameter(plain)]
    variants += [torch.stack([plain, plain], dim=-1)[..., 1]]
    expected = fingerprint_tensors({"x": plain})
    assert [fingerprint_tensors({"x": variant}) for variant in variants] == [expected] * len(variants)


def test_tensor_fingerprint_forgets_the_stride_of_a_single_element() -> None:
    assert fingerprint_tensors({"x": torch.ones(4)[::4]}) == fingerprint_tensors({"x": torch.ones(1)})


def test_tensor_fingerprint_reads_lazy_conjugates_and_negatives() -> None:
    conjugate = torch.tensor([1 + 2j]).conj()
    assert fingerprint_tensors({"x": conjugate}) == fingerprint_tensors({"x": torch.tensor([1 - 2j])})
    assert conjugate.imag.is_neg(), "torch no longer negates lazily; find another lazy tensor"
    assert fingerprint_tensors({"x": conjugate.imag}) == fingerprint_tensors({"x": torch.tensor([-2.0])})


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "extra": torch.empty(0)},
        lambda t: {name: t[name] for name in t if name != "empty"},
        lambda t: {"weights" if name == "weight" else name: tensor for name, tensor in t.items()},
        lambda t: {**t, "weight": t["bias"], "bias": t["weight"]},
        lambda t: {**t, "weight": t["weight"].reshape(4, 3)},
        lambda t: {**t, "weight": t["weight"].view(torch.int32)},
        lambda t: {**t, "weight": t["weight"].double()},
        lambda t: {**t, "weight": t["weight"].nextafter(torch.tensor(9.0))},
        lambda t: {**t, "empty": torch.empty(5, 0)},
        lambda t: {**t, "steps": torch.tensor([7])},
    ],
    ids=["added", "removed", "renamed", "swapped", "reshaped", "reinterpreted", "widened", "one ulp", "empty", "0-d"],
)
def test_tensor_fingerprint_sees_every_change(change) -> None:
    assert fingerprint_tensors(change(tensors())) != fingerprint_tensors(tensors())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.complex64])
def test_tensor_fingerprint_takes_every_dtype(dtype: torch.dtype) -> None:
    zeros, ones = torch.zeros(3).to(dtype), torch.ones(3).to(dtype)
    assert fingerprint_tensors({"x": zeros}) != fingerprint_tensors({"x": ones})


def test_tensor_fingerprint_may_be_read_and_continued() -> None:
    fingerprint = TensorFingerprint()
    seen = [fingerprint.hexdigest()]
    for name, tensor in tensors().items():
        fingerprint.update(name, tensor)
        seen.append(fingerprint.hexdigest())
    assert len(set(seen)) == len(tensors()) + 1
    assert seen[-1] == fingerprint_tensors(tensors())


def test_tensor_fingerprint_is_pinned() -> None:
    """Stores on disk hold these values: a change here refuses to resume every one of them."""
    named = {"weight": torch.arange(6, dtype=torch.float32).reshape(2, 3), "bias": torch.ones(2, dtype=torch.bfloat16)}
    assert fingerprint_tensors(named) == "e4eaee05d837ee45f9b3199545557acfa3e9da433f5f49089164c9109252e8e1"


def test_tensor_fingerprint_refuses_what_has_no_bytes() -> None:
    fingerprint = TensorFingerprint()
    fingerprint.update("x", torch.ones(1))
    with pytest.raises(ValueError, match="'x' was already added"):
        fingerprint.update("x", torch.ones(1))
    with pytest.raises(ValueError, match="'y' is on the device \"meta\""):
        fingerprint.update("y", torch.ones(1, device="meta"))
    with pytest.raises(TypeError, match=r"'y' must be a dense torch tensor, got layout torch\.sparse_coo"):
        fingerprint.update("y", torch.ones(2, 2).to_sparse())
    with pytest.raises(TypeError, match="'y' must be a dense torch tensor, got dict"):
        fingerprint.update("y", {})  # extra state in a state_dict


@given(JSON_VALUES)
def test_json_fingerprint_survives_writing_and_reading(value) -> None:
    assert fingerprint_json(json.loads(json.dumps(value, indent=3))) == fingerprint_json(value)
    assert json.loads(canonical_json(value)) == value


def test_json_fingerprint_forgets_key_order_and_tuples_but_not_types() -> None:
    assert fingerprint_json({"a": 1, "b": (2, 3)}) == fingerprint_json({"b": [2, 3], "a": 1})
    assert len({fingerprint_json(value) for value in (1, 1.0, True, "1", [1], {"1": 1}, None)}) == 7


def test_json_fingerprint_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint_json({"x": [float("nan")]})
    with pytest.raises(TypeError, match="not JSON serializable"):
        fingerprint_json({"x": torch.ones(1)})
    with pytest.raises(TypeError, match=r"keys must be strings, got 1 \(int\)"):
        fingerprint_json({"x": [{1: "one"}]})
