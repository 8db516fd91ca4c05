"""Small numbers in few bits: class ids of ceil(log2 V) bits, log-probabilities of 8."""

from __future__ import annotations

import numpy as np

GROUP = 8  # so many ids fill whole bytes, whatever their width


def bits_for(classes: int) -> int:
    """Return how many bits the id of one of so many classes needs."""
    return max(1, (classes - 1).bit_length())


def packed_bytes(count: np.ndarray | int, bits: int) -> np.ndarray | int:
    """Return the bytes that so many ids take: whole groups of 8."""
    return -(-count // GROUP) * bits


def pack(ids: np.ndarray, bits: int) -> np.ndarray:
    """Pack ids below 2**bits, lowest bit first; the last group is filled up with zeros.

    Args:
        ids: Non-negative integers, ``[N]``.
        bits: Of each, at most 32.

    Returns:
        uint8 ``[ceil(N / 8) * bits]``.
    """
    groups = np.zeros((-(-len(ids) // GROUP), GROUP), dtype=np.uint64)
    groups.reshape(-1)[: len(ids)] = ids
    out = np.zeros((len(groups), bits), dtype=np.uint8)
    for j in range(GROUP):
        byte, shift = divmod(j * bits, 8)
        value = groups[:, j] << np.uint64(shift)
        for i in range(byte, min(bits, byte + -(-(bits + shift) // 8))):
            out[:, i] |= ((value >> np.uint64(8 * (i - byte))) & np.uint64(255)).astype(np.uint8)
    return out.reshape(-1)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Return the ids of whole groups, those that filled up the last one too: int32, ``[8 * groups]``."""
    groups = packed.reshape(-1, bits)
    wide = np.uint32 if bits + 7 <= 32 else np.uint64
    columns = groups.T.astype(wide)  # [bits, groups]: each byte of a group side by side in memory
    out = np.empty((GROUP, len(groups)), dtype=np.int32)
    for j in range(GROUP):
        byte, shift = divmod(j * bits, 8)
        value = columns[byte] >> wide(shift)
        for i in range(byte + 1, min(bits, byte + -(-(bits + shift) // 8))):
            value |= columns[i] << wide(8 * (i - byte) - shift)
        out[j] = (value & wide((1 << bits) - 1)).astype(np.int32)
    return out.T.reshape(-1)


def to_bytes(log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round log-probabilities to 8 bits, finest next to the largest of each row, where most of the mass is.

    Args:
        log_probs: float32 ``[N, k]``.

    Returns:
        uint8 ``[N, k]``, and the smallest and largest of each row as float16 ``[N, 2]``.
    """
    ends = np.stack([log_probs.min(-1), log_probs.max(-1)], -1).astype(np.float16)
    low, high = ends.astype(np.float32).T[..., None]
    share = np.clip((high - log_probs) / np.maximum(high - low, 1e-6), 0, 1)
    return np.rint(255 * np.sqrt(share)).astype(np.uint8), ends


def from_bytes(rounded: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return what ``to_bytes`` rounded, float32 ``[N, k]``."""
    low, high = ends.astype(np.float32).T[..., None]
    share = rounded.astype(np.float32) / 255
    return high - np.maximum(high - low, 1e-6) * share * share
