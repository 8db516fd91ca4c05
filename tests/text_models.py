"""A tiny Llama and a tokenizer of single bytes for everything about texts; nothing is downloaded."""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from potstill.data.texts import bytes


def byte_tokenizer(pad="<|pad|>", end="<|end|>", template=bytes.TEMPLATE):
    """One token a byte, with or without what a tokenizer may lack."""
    fast = copy.deepcopy(bytes.byte_tokenizer())
    fast.pad_token, fast.eos_token, fast.chat_template = pad, end, template
    return fast


def llama(width=16, layers=2, heads=2, kv_heads=1, vocabulary=260, seed=0, tied=True, positions=512):
    """An untrained Llama whose guesses differ from place to place."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=positions,
            tie_word_embeddings=tied, pad_token_id=0, bos_token_id=None, eos_token_id=1, initializer_range=0.2,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


def save_pair(folder, **sizes):
    """Save a Llama with its tokenizer, and return the folder as text."""
    llama(**sizes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)
