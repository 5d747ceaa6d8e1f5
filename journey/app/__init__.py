"""Questions asked in a browser: a prompt or an image, its steps, and who steered a part of it.

In reading order: ``workbench`` (what all visitors share), ``session`` (what one of them made), ``turn`` (one at a time
with the network), ``upload`` (images and masks that come from outside), ``resemblance`` (a feature that every image
has), ``interface`` (the Gradio page around them, with ``brush.js``, ``frame.js`` and ``app.css``), ``serve`` (at a
local address). Only the last two need Gradio.
"""
