"""The app at an address of this machine: no telemetry, nothing from elsewhere."""

from __future__ import annotations

import os
from importlib import resources
from typing import Any

from journey.app.interface import build
from journey.app.workbench import Workbench

_MAX_FILE_SIZE = "100mb"
_WAITING = 64  # questions in the queue at most


def load_gradio() -> Any:
    """Import Gradio, with its telemetry off.

    Returns:
        The package.

    Raises:
        ImportError: If it is not installed; names the extra.
    """
    # Read when Gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f'the app needs Gradio: pip install "journey-attribution[app]" ({error})') from error
    return gradio


def serve(workbench: Workbench, *, host: str = "127.0.0.1", port: int | None = None) -> tuple[Any, str]:
    """Serve the app until its ``close`` is called or the process ends.

    Args:
        workbench: What all visitors share.
        host: Where it listens; 0.0.0.0 lets other machines in, who all may use the model.
        port: By default the first free one from 7860.

    Returns:
        The ``gradio.Blocks``, and the address.

    Raises:
        ImportError: If Gradio is not installed; names the extra.
        OSError: If the port is taken.
    """
    gr = load_gradio()
    blocks = build(workbench)
    blocks.queue(default_concurrency_limit=1, max_size=_WAITING, api_open=False)
    plain = ("system-ui", "sans-serif")  # not a font of a server elsewhere
    try:
        _, local, _ = blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            pwa=False,
            enable_monitoring=False,
            mcp_server=False,
            run_history=False,
            inline=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            max_file_size=_MAX_FILE_SIZE,
            theme=gr.themes.Base(primary_hue="teal", font=plain, font_mono=("ui-monospace", "monospace")),
            css=resources.files("journey.app").joinpath("app.css").read_text(encoding="utf-8"),
        )
    except OSError as error:
        raise OSError(f"port must be a free one of {host}, got {port or 'none from 7860 on'}: {error}") from error
    return blocks, local
