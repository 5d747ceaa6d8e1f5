"""A network computes without its adapter for a while, and with it again whatever happens."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from models import make_unet

from journey.audit.adapter import without_adapter


def test_the_adapter_is_off_only_for_a_while() -> None:
    network: Any = make_unet()
    told: list[str] = []
    network.disable_adapters = lambda: told.append("off")
    network.enable_adapters = lambda: told.append("on")
    with without_adapter(network):  # has none
        assert told == []
    network.peft_config = {"default": None}
    with suppress(RuntimeError), without_adapter(network):
        assert told == ["off"]
        raise RuntimeError
    assert told == ["off", "on"]
