"""Look into a running model without editing it: hidden states by module path, named outputs."""

from potstill.taps.signal import Signal, lookup, observe
from potstill.taps.taps import Tap, Taps, expand_paths

__all__ = ["Signal", "Tap", "Taps", "expand_paths", "lookup", "observe"]
