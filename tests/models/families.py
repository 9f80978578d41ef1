"""Tiny random models of the families that transformers offers, each with a window of 8 tokens where it has one."""

from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf_lightning.models.loading import load_causal_lm

VOCABULARY = 64
BASE = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
BERT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA = {**BERT, "num_key_value_heads": 2}
HEADS = {**LLAMA, "head_dim": 8}
WINDOW = {"sliding_window": 8}
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
OPT = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT |= {"max_position_embeddings": 64, "word_embed_proj_dim": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MLA = {
    **{**LLAMA, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "v_head_dim": 8},
    **{"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
}
STATES = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}
MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
JAMBA = {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
JAMBA |= {"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4}
NEXT = {**EXPERTS, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
NEXT |= {"linear_value_head_dim": 8, "shared_expert_intermediate_size": 16}
NEXT |= {"layer_types": ["linear_attention", "full_attention"]}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4}
BART |= {"decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "max_position_embeddings": 64}


def rope(kind: str, **options: Any) -> dict[str, Any]:
    """A rotary embedding of that kind, on heads of width 8."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **options}}


LONG = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 16}
SCALED = {"factor": 4.0, "original_max_position_embeddings": 16}
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("gpt2", GPT),
    "OPT": ("opt", OPT),
    "OPT, projected (350m)": ("opt", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "GPT-NeoX, Pythia": ("gpt_neox", LLAMA),
    "GPT-NeoX Japanese": ("gpt_neox_japanese", {k: v for k, v in BERT.items() if k != "intermediate_size"}),
    "GPT-Neo, local layers": (
        "gpt_neo",
        {
            **{"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8, "max_position_embeddings": 64},
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "GPT-J": ("gptj", {**GPT, "rotary_dim": 4}),
    "CodeGen": ("codegen", {**GPT, "rotary_dim": 4}),
    "GPT BigCode, StarCoder": ("gpt_bigcode", GPT),
    "OpenAI GPT": ("openai-gpt", GPT),
    "CTRL": ("ctrl", {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "Bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "MPT": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "Falcon": ("falcon", {**FALCON, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon, alibi": ("falcon", {**FALCON, "alibi": True, "multi_query": False}),
    "Llama": ("llama", LLAMA),
    "Llama 3 rope": ("llama", {**LLAMA, **rope("llama3", **SCALED, **BANDS)}),
    "Llama, yarn": ("llama", {**LLAMA, **rope("yarn", **SCALED)}),
    "Llama, dynamic rope": ("llama", {**LLAMA, "max_position_embeddings": 16, **rope("dynamic", factor=4.0)}),
    "Llama 4 text": (
        "llama4_text",
        {
            **{**HEADS, "intermediate_size_mlp": 48, "num_local_experts": 4, "attention_chunk_size": 8},
            **{"no_rope_layers": [1, 0], "moe_layers": [1]},
        },
    ),
    "Mistral": ("mistral", {**LLAMA, **WINDOW}),
    "Ministral": ("ministral", {**HEADS, **WINDOW}),
    "Mixtral": ("mixtral", {**LLAMA, "sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen 2": ("qwen2", LLAMA),
    "Qwen 2, window": ("qwen2", {**LLAMA, **WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "Qwen 3": ("qwen3", HEADS),
    "Qwen 3 MoE": ("qwen3_moe", {**HEADS, **EXPERTS}),
    "Qwen 3 Next": ("qwen3_next", {**HEADS, **NEXT}),
    "Gemma": ("gemma", HEADS),
    "Gemma 2": (
        "gemma2",
        {
            **{**HEADS, **WINDOW, "query_pre_attn_scalar": 8},
            **{"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        },
    ),
    "Gemma 3 text": ("gemma3_text", {**HEADS, **MIXED, "query_pre_attn_scalar": 8}),
    "Phi": ("phi", {**LLAMA, "partial_rotary_factor": 0.5}),
    "Phi 3": ("phi3", {**LLAMA, **WINDOW}),
    "Phi 3, longrope": (
        "phi3",
        {**LLAMA, "sliding_window": None, "original_max_position_embeddings": 16, **rope("longrope", **LONG)},
    ),
    "OLMo": ("olmo", LLAMA),
    "OLMo 2": ("olmo2", LLAMA),
    "OLMo 3": ("olmo3", {**LLAMA, **WINDOW}),
    "OLMoE": ("olmoe", {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2}),
    "Granite": ("granite", {**LLAMA, "logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
    "Granite 4, hybrid": (
        "granitemoehybrid",
        {
            **{**LLAMA, **MAMBA_HEADS, "layer_types": ["mamba", "attention"]},
            **{"num_local_experts": 0, "shared_intermediate_size": 48},
        },
    ),
    "Cohere": ("cohere", {**LLAMA, "logit_scale": 0.25}),
    "Cohere 2": ("cohere2", {**LLAMA, **MIXED}),
    "StarCoder 2": ("starcoder2", {**LLAMA, **WINDOW}),
    "SmolLM 3": ("smollm3", LLAMA),
    "StableLM": ("stablelm", {**LLAMA, "partial_rotary_factor": 0.5}),
    "Persimmon": ("persimmon", {**LLAMA, "partial_rotary_factor": 0.5}),
    "Nemotron": ("nemotron", HEADS),
    "GLM": ("glm", HEADS),
    "GLM 4": ("glm4", HEADS),
    "EXAONE 4": ("exaone4", {**LLAMA, **WINDOW, "sliding_window_pattern": 2}),
    "Helium": ("helium", HEADS),
    "Arcee": ("arcee", HEADS),
    "Seed-OSS": ("seed_oss", HEADS),
    "Apertus": ("apertus", LLAMA),
    "ERNIE 4.5": ("ernie4_5", HEADS),
    "HunYuan": ("hunyuan_v1_dense", HEADS),
    "GPT-OSS": ("gpt_oss", {**HEADS, **MIXED, "num_local_experts": 4, "num_experts_per_tok": 2, **rope("default")}),
    "DeepSeek V2": ("deepseek_v2", MLA),
    "DeepSeek V3": ("deepseek_v3", MLA),
    "BioGPT": ("biogpt", LLAMA),
    "XGLM": (
        "xglm",
        {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64},
    ),
    "ModernBERT decoder": (
        "modernbert-decoder",
        {**BERT, "local_attention": 16, "global_attn_every_n_layers": 2, "bos_token_id": 2, "cls_token_id": 2},
    ),
    "Mamba": ("mamba", STATES),
    "Mamba 2": ("mamba2", {**STATES, "head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 8}),
    "FalconMamba": ("falcon_mamba", STATES),
    "Jamba": ("jamba", {**LLAMA, **JAMBA, "use_mamba_kernels": False}),
    "Bamba": ("bamba", {**LLAMA, **MAMBA_HEADS, "attn_layer_indices": [1]}),
    "RecurrentGemma": (
        "recurrent_gemma",
        {
            **{**HEADS, "num_hidden_layers": 3, "lru_width": 32},
            **{"attention_window_size": 8, "num_key_value_heads": 1},
        },
    ),
    "LFM2": ("lfm2", {**LLAMA, "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]}),
    "xLSTM": ("xlstm", {"hidden_size": 32, "embedding_dim": 32, "num_hidden_layers": 2, "num_heads": 4}),
    "RWKV": (
        "rwkv",
        {
            **{"hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 48},
            **{"num_hidden_layers": 2, "context_length": 64},
        },
    ),
    "BERT": ("bert", BERT),
    "BERT, is_decoder": ("bert", {**BERT, "is_decoder": True}),
    "RoBERTa": ("roberta", BERT),
    "RoBERTa, is_decoder": ("roberta", {**BERT, "is_decoder": True}),
    "XLNet": ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "BART": ("bart", BART),
}


def make_family(name: str) -> PreTrainedModel:
    """A model of the family with weights so wide that a wrong mask, position or cap shows in every logit."""
    kind, sizes = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = load_causal_lm(config={"model_type": kind, **BASE, **sizes}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() < 2:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif parameter.numel() > 1 and float(parameter.std()) > 0:
                    parameter.mul_(0.2 / parameter.std())
    return model
