"""Look into a running model without editing it: hidden states by module path, named outputs."""

from potstill.taps.hidden import HiddenTaps, Tap, expand_paths
from potstill.taps.probabilities import attention_probs
from potstill.taps.signal import Signal, lookup, observe

__all__ = ["HiddenTaps", "Signal", "Tap", "attention_probs", "expand_paths", "lookup", "observe"]
