"""Write a tiny Llama as a GGUF file, as llama.cpp lays it out, to test reading it."""

import torch


def write_llama(gguf, model, path):
    """Write the model in fp32 with a vocabulary of bytes; 264 tokens in all."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*"abcdefg", "ab", *(chr(256 + i) for i in range(config.vocab_size - 8))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{{ messages }}")
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":  # tied: read from the embeddings
            writer.add_tensor(_name(name), _laid_out(name, tensor, config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name):
    parts = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    return name


def _laid_out(name, tensor, config):
    # Queries and keys are turned in pairs of neighbours there, in halves of a head here.
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor.contiguous()
    rows, width = tensor.shape
    halves = tensor.reshape(heads, 2, rows // heads // 2, width)
    return torch.swapaxes(halves, 1, 2).reshape(rows, width).contiguous()
