"""The manifest: one spelling for one run, and a refusal in words for everything else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_runs import make_manifest

from journey.errors import StoreError, StoreFormatError
from journey.store.manifest import FORMAT_VERSION, Manifest

MANIFESTS = st.builds(
    Manifest,
    bins=st.integers(1, 100),
    proj_dim=st.integers(1, 10**6),
    checkpoints=st.lists(st.text(), min_size=1, max_size=3, unique=True),
    library_version=st.text(max_size=5),
    fingerprints=st.dictionaries(
        st.text(),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        max_size=3,
    ),
)


@given(MANIFESTS)
def test_manifest_survives_writing_and_reading(manifest: Manifest) -> None:
    read = Manifest.from_json(manifest.to_json())
    assert read == manifest
    assert read.to_json() == manifest.to_json()
    assert not read.differences(manifest)


def test_manifest_bytes_are_pinned() -> None:
    """No clock, host, order of arguments or hash seed gets in, and old stores stay readable."""
    manifest = make_manifest(checkpoints=["é"], fingerprints={"b": {"z": 1, "a": (2.0,)}, "a": None})
    assert manifest.to_json() == (
        '{\n  "bins": 2,\n  "checkpoints": [\n    "\\u00e9"\n  ],\n'
        f'  "checksum": "{manifest.checksum}",\n'
        '  "fingerprints": {\n    "a": null,\n    "b": {\n      "a": [\n        2.0\n      ],\n'
        '      "z": 1\n    }\n  },\n'
        '  "format_version": 4,\n  "library_version": "1.2.3",\n  "proj_dim": 3,\n  "row": "float32"\n}\n'
    )
    assert manifest.checksum == "87030296804c320aebe6de30703475160ed7228fcea727baa18f8ddf25e27f88"


def test_manifest_with_any_flipped_bit_is_refused() -> None:
    manifest = make_manifest(fingerprints={"seed": 1.5, "é": True})
    text = manifest.to_json().encode()
    for position in range(len(text)):
        for bit in range(8):
            flipped = bytearray(text)
            flipped[position] ^= 1 << bit
            try:
                read = Manifest.from_json(bytes(flipped))
            except StoreError:
                continue
            # The capital E of an escape or an exponent is another spelling, not another value.
            assert read == manifest, f"bit {bit} of byte {position} changed the manifest unnoticed"


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", "null", "{}", '{"format_version": 4}', b"\xff\xfe", "[" * 9])
def test_manifest_that_is_no_manifest_is_refused(text: str | bytes) -> None:
    with pytest.raises(StoreError, match=r"^/data/manifest.json is damaged.*restore the file, or delete the folder"):
        Manifest.from_json(text, "/data/manifest.json")


def test_manifest_that_was_edited_is_refused() -> None:
    document = {**json.loads(make_manifest().to_json()), "proj_dim": 6}
    with pytest.raises(StoreError, match="damaged or was edited: its fields have the checksum"):
        Manifest.from_json(json.dumps(document))
    with pytest.raises(StoreError, match="proj_dim must be at least 1, got 0"):
        Manifest.from_json(json.dumps({**document, "proj_dim": 0}))


def test_manifest_of_another_format_is_refused_whatever_else_it_holds() -> None:
    text = json.dumps({"format_version": FORMAT_VERSION + 1, "everything": "else"})
    with pytest.raises(
        StoreFormatError, match=f"has format version {FORMAT_VERSION + 1}, this version of journey reads"
    ):
        Manifest.from_json(text)


def test_differences_name_the_innermost_field_with_both_values() -> None:
    ours = make_manifest(fingerprints={"draws": {"seed": 0, "grid": [1, 2]}, "flag": True, "old": {}})
    theirs = make_manifest(proj_dim=4, fingerprints={"draws": {"seed": 1, "grid": [1, 2, 3]}, "flag": 1})
    assert ours.differences(theirs) == [
        ("fingerprints.draws.grid[2]", "(absent)", "3"),
        ("fingerprints.draws.seed", "0", "1"),
        ("fingerprints.flag", "true", "1"),
        ("fingerprints.old", "{}", "(absent)"),
        ("proj_dim", "3", "4"),
    ]


def test_manifests_of_different_runs_have_different_checksums() -> None:
    changes = [
        {},
        {"row": "int8"},
        {"bins": 1},
        {"proj_dim": 4},
        {"checkpoints": ["runs/second é", "first"]},
        {"library_version": "1.2.4"},
        {"fingerprints": {}},
    ]
    assert len({make_manifest(**change).checksum for change in changes}) == len(changes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"proj_dim": 0}, ValueError, "proj_dim must be at least 1, got 0"),
        ({"bins": -1}, ValueError, "bins must be at least 1, got -1"),
        ({"proj_dim": 32.0}, TypeError, r"proj_dim must be an int, got 32.0 \(float\)"),
        ({"bins": True}, TypeError, r"bins must be an int, got True \(bool\)"),
        ({"library_version": 1}, TypeError, "library_version must be a string, got 1"),
        ({"checkpoints": "last"}, TypeError, "checkpoints must be a sequence of names, got 'last'"),
        ({"checkpoints": [1]}, TypeError, r"checkpoints must be a sequence of names, got \[1\]"),
        ({"checkpoints": []}, ValueError, "checkpoints must name at least one checkpoint"),
        ({"checkpoints": ["a", "b", "a"]}, ValueError, "different names, got 'a' more than once"),
        ({"fingerprints": [1]}, TypeError, "fingerprints must map names to JSON values, got list"),
        ({"fingerprints": {"loss": float("nan")}}, ValueError, "fingerprint 'loss' must be a JSON value"),
        ({"fingerprints": {"loss": object()}}, TypeError, "fingerprint 'loss' must be a JSON value"),
        ({"fingerprints": {"loss": {1: 2}}}, TypeError, "fingerprint 'loss' must be a JSON value: keys must be str"),
    ],
)
def test_manifest_refuses_bad_fields(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_manifest(**change)
