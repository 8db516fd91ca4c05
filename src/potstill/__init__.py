"""Potstill: distil large multimodal models into small students, module by module."""

from potstill._version import __version__

__all__ = ["__version__"]
