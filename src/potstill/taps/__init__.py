"""Look into a running model without editing it: hidden states and attention maps by module path, named outputs."""

from potstill.taps.attention import find_attention
from potstill.taps.attention_modules import READERS, Reader
from potstill.taps.probabilities import attention_probs
from potstill.taps.signal import Signal, lookup, observe
from potstill.taps.taps import AttentionTap, Tap, Taps, expand_paths

__all__ = [
    "READERS",
    "AttentionTap",
    "Reader",
    "Signal",
    "Tap",
    "Taps",
    "attention_probs",
    "expand_paths",
    "find_attention",
    "lookup",
    "observe",
]
