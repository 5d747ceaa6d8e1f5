"""Optional packages, and what to install where one is missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

EXTRA = 'pip install "journey-attribution[exports]"'


def optional(name: str, install: str = EXTRA) -> Any:
    """Import an optional package.

    Args:
        name: Of the module.
        install: The command that installs it.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed; says what to install.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"this export needs {name.partition('.')[0]}: {install} ({error})") from error
