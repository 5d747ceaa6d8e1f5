"""Single steps: ``truth`` (the losses of retrained models), ``contenders``, ``compare``."""
