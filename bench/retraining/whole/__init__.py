"""Whole images: ``truth`` (the losses of retrained models), ``contenders``, ``compare``."""
