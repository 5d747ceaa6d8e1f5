"""The app's page: what is where, and which button asks what. The only module that knows Gradio's components."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from journey.app.session import RESEMBLANCE, WHOLE, Session
from journey.app.turn import CancelledError
from journey.app.workbench import Workbench
from journey.report.view import to_picture

# Everything that needs the network waits in one queue.
_QUEUE: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "network",
    "api_visibility": "private",
    "trigger_mode": "once",
}
_TITLE = "Which training images steered the generation?"
_FIELDS = {"prompt": "Prompt", "label": "Class, by its number"}


def build(workbench: Workbench) -> Any:
    """Build the page.

    Args:
        workbench: What all visitors share.

    Returns:
        The ``gradio.Blocks``, not yet served.

    Raises:
        ModuleNotFoundError: If Gradio is not installed.
    """
    import gradio as gr

    with gr.Blocks(title=_TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as blocks:
        session = gr.State()
        gr.Markdown(f"# {_TITLE}")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                asked = _question(gr, workbench)
                status = gr.Textbox(label="State", value="Ready.", interactive=False, lines=2, elem_id="state")
                cancel = gr.Button("Cancel", size="sm", elem_id="cancel")
                brush = gr.HTML(
                    {"image": "", "mask": ""},
                    html_template=_resource("brush.html"),
                    js_on_load=_resource("brush.js"),
                    elem_id="brush",
                )
                attribute = gr.Button("Attribute the painted part", elem_id="attribute")
                part, feature, completions, decide = _decision(gr, workbench)
                with gr.Accordion("Download", open=False, elem_id="downloads"):
                    write = gr.Button("Write page, CSV and Parquet", elem_id="write")
                    files = gr.File(label="Files", file_count="multiple", interactive=False, elem_id="files")
            with gr.Column(scale=4, min_width=320):
                frame = gr.HTML(
                    {"page": "", "scope": None, "anew": True},
                    html_template=_resource("frame.html"),
                    js_on_load=_resource("frame.js"),
                    elem_id="journey-page",
                )

        answers = [status, brush, frame, part]
        shown: dict[str, Any] = {**_QUEUE, "outputs": answers, "show_progress_on": status}
        told, seed, steps, guidance, generate, file, open_file = asked

        def run(work: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
            return _handler(gr, work, len(answers))

        events = [
            generate.click(run(_generate), [session, told, seed, steps, guidance], **shown),
            told.submit(run(_generate), [session, told, seed, steps, guidance], **shown),
            open_file.click(run(_open), [session, file, told, seed, steps], **shown),
            attribute.click(run(_attribute), [session, brush], **shown),
            decide.click(run(_decide), [session, part, feature, completions], **shown),
        ]
        write.click(_write, session, [status, files], show_progress_on=status, api_visibility="private")
        # At once and in no queue: the session stops its own work, Gradio takes what waits out of the queue.
        cancel.click(_cancel, session, status, queue=False, cancels=events, api_visibility="private")
        blocks.load(lambda: Session(workbench), outputs=session, queue=False, api_visibility="private")
    return blocks


def _question(gr: Any, workbench: Workbench) -> tuple[Any, ...]:
    """What is asked: a prompt or an image, with its options."""
    form = workbench.told
    told = gr.Textbox(label=_FIELDS.get(form or "", ""), visible=form is not None, max_lines=3, elem_id="told")
    generate = gr.Button("Generate", variant="primary", elem_id="generate")
    with gr.Accordion("Options", open=False, elem_id="options"):
        seed = gr.Number(label="Seed", value=0, precision=0, elem_id="seed")
        steps = gr.Slider(2, 100, value=50, step=1, label="Steps of the sampler", elem_id="steps")
        guidance = gr.Number(label="Guidance (empty: the pipeline's own)", value=None, visible=form is not None)
    with gr.Accordion("An image of your own", open=False, elem_id="own"):
        file = gr.File(label="Drop an image here", type="filepath", height=110, elem_id="file")
        open_file = gr.Button("Attribute this image", elem_id="open")
    return told, seed, steps, guidance, generate, file, open_file


def _decision(gr: Any, workbench: Workbench) -> tuple[Any, ...]:
    """What is asked of transitions."""
    with gr.Accordion("When was it decided?", open=False, elem_id="decision"):
        part = gr.Dropdown([WHOLE], value=WHOLE, label="Of", elem_id="part")
        features = [RESEMBLANCE, *workbench.classifiers]
        feature = gr.Dropdown(features, value=RESEMBLANCE, label="Feature", visible=len(features) > 1)
        completions = gr.Slider(4, 64, value=16, step=1, label="Images completed from each step", elem_id="completions")
        decide = gr.Button("Find the steps", elem_id="decide")
    return part, feature, completions, decide


def _handler(gr: Any, work: Callable[..., dict[str, Any]], num_outputs: int) -> Callable[..., Any]:
    """A listener of Gradio's: does some work, and tells what became of it in words, as text."""

    # Gradio puts its progress, which follows the library's bars, where its argument stands among the inputs.
    def handle(session: Session, progress: Any = gr.Progress(track_tqdm=True), *given: Any) -> Any:  # noqa: B008
        nothing = [gr.skip()] * (num_outputs - 1)
        try:
            found = work(session, *given)
        except CancelledError:
            return ["Cancelled.", *nothing]
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            return [f"{error}.", *nothing]
        part = gr.update(choices=[WHOLE, *session.regions], value=found.get("part", WHOLE))
        return [found["told"], found.get("brush", gr.skip()), found["frame"], part]

    return handle


def _generate(session: Session, told: str, seed: float, steps: float, guidance: float | None) -> dict[str, Any]:
    session.generate(told or "", seed=_whole(seed, "seed"), num_inference_steps=int(steps), guidance=guidance)
    return _another(session, "Generated.")


def _open(session: Session, file: str | None, told: str, seed: float, steps: float) -> dict[str, Any]:
    if not file:
        raise ValueError("drop an image first")
    session.open(Path(file), told or "", seed=_whole(seed, "seed"), num_inference_steps=int(steps))
    return _another(session, "Read.")


def _another(session: Session, told: str) -> dict[str, Any]:
    """What is shown of another image."""
    assert session.trajectory is not None
    buffer = io.BytesIO()
    to_picture(session.trajectory.image_pixels[0]).save(buffer, format="PNG")
    picture = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return {
        "told": f"{told} Move along its steps, or paint a part of it to attribute that part alone.",
        "brush": {"image": picture, "mask": ""},
        "frame": {"page": session.page(), "scope": 0, "anew": True},
    }


def _attribute(session: Session, brush: dict[str, str]) -> dict[str, Any]:
    name = session.attribute(brush["mask"])
    return {
        "told": f"The page shows {name}.",
        "brush": {**brush, "mask": ""},
        "frame": {"page": session.page(), "scope": len(session.regions), "anew": False},
        "part": name,
    }


def _decide(session: Session, part: str, feature: str, completions: float) -> dict[str, Any]:
    name = session.decide(part, feature, completions=int(completions))
    found = session.transitions[0, name]
    shown = f'The page shows when "{name}" is decided, below the curves.'
    return {
        "told": shown if found.found else f'No steps decide "{name}": its likelihood does not rise clearly.',
        "frame": {"page": session.page(), "scope": None, "anew": False},
        "part": part,
    }


def _write(session: Session) -> tuple[str, list[str] | None]:
    try:
        return "Written.", [str(path) for path in session.write()]
    except (ValueError, ImportError, OSError) as error:
        return f"{error}.", None


def _cancel(session: Session) -> str:
    session.cancel()
    return "Cancelled."


def _whole(number: float | None, name: str) -> int:
    if number is None or number != int(number):
        raise ValueError(f"{name} must be a whole number, got {number}")
    return int(number)


def _resource(name: str) -> str:
    return resources.files("journey.app").joinpath(name).read_text(encoding="utf-8")
