"""From nothing to an answer: data, a model trained in minutes, and what it shows.

In reading order: ``digits`` (handwritten digits and a denoiser of them), ``digits_demo`` (its journey), ``emoji``
(named emoji), ``emoji_model`` (a text-to-image model of them), ``minilm`` (its text encoder), ``emoji_demo`` (its
journey), ``captions`` (whether proponents share the words of a prompt), ``fit`` (training).
"""
