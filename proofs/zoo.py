"""Tiny random bases of every architecture that transformers has for causal language models, made
from its own configuration classes."""

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WINDOW = 16
"""Tokens that a layer with a window looks back, or a chunk has."""
CONTEXT = 256
VOCABULARY = 320

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_layers": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "ffn_hidden_size": 48,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "ffn_dim": 48,
    "n_inner": 48,
    "max_position_embeddings": CONTEXT,
    "n_positions": CONTEXT,
    "n_ctx": CONTEXT,
    "max_seq_len": CONTEXT,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "attention_window_size": WINDOW,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Where a configuration has a value of this name, this is it."""

DROPPED = re.compile("dropout|pdrop|_drop")
OWN: dict[str, dict[str, Any]] = {
    "axk1": {"head_dim": ..., "num_key_value_heads": 4},
    "axk2": {"head_dim": ..., "num_key_value_heads": 4},
    "bamba": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "attn_layer_indices": [1, 3],
    },
    "bart": {"encoder_layers": 1, "decoder_layers": 2},
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": {"head_dim": ..., "num_key_value_heads": 4},
    "deepseek_v3": {"head_dim": ..., "num_key_value_heads": 4},
    "deepseek_v32": {"head_dim": ..., "num_key_value_heads": 4},
    "glm4_moe_lite": {"head_dim": ..., "num_key_value_heads": 4},
    "glm_moe_dsa": {"head_dim": ..., "num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "layer_types": ["mamba", "attention"] * 2,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "longcat_flash": {"head_dim": ..., "num_key_value_heads": 4},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "youtu": {"head_dim": ..., "num_key_value_heads": 4},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
    "gemma4_text": {
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
    "falcon_h1": {
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
        "mamba_d_ssm": 32,
    },
    "zamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_hidden_layers": 8,
        "mamba_d_state": 8,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "head_dim": ...,
        "n_mamba_heads": 4,
        "mamba_d_state": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What an architecture needs besides, or (...) instead, to be small and whole."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Every byte, and a few words: about as GPT-2's and Llama 3's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    text = ["the invoice is late", "billing", "the parcel is broken", "delivery"] * 50
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def config_of(model_type: str, vocabulary: int = VOCABULARY, **own: Any) -> Any:
    """The architecture's own defaults, but small; `own` goes before."""
    kind = CONFIG_MAPPING[model_type]
    usual = kind()
    known = {*vars(usual), *getattr(usual, "attribute_map", {})}
    given = {k: v for k, v in SMALL.items() if k in known}
    given |= {k: 0.0 for k, v in vars(usual).items() if DROPPED.search(k) and type(v) is float}
    given |= {"vocab_size": vocabulary} | OWN.get(model_type, {}) | own
    return kind(**{k: v for k, v in given.items() if v is not ...})


def has_parts(model_type: str) -> bool:
    """Whether it is a wrapper around a language model and others, such as one for pictures."""
    config = CONFIG_MAPPING[model_type]()
    return config.get_text_config() is not config


def model_of(model_type: str, seed: int = 0, **own: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(model_type, **own), dtype=torch.float32)
    with torch.no_grad():  # far enough from zero that a wrong attention is seen
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0.0, 0.15)
    return model.eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
