"""The demo model in torch: PLM's shape in small, with the names of its checkpoint."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from demo_text import VOCABULARY
from torch import Tensor, nn

CONFIG = {
    "architectures": ["PLMForCausalLM"],
    "model_type": "plm",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "intermediate_size": 1024,
    "hidden_act": "relu2",
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, CONFIG["rms_norm_eps"])


def linear(rows: int, columns: int, scale: float = 1.0) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=False)
    nn.init.normal_(layer.weight, std=scale / math.sqrt(columns))
    return layer


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved RoPE: x (..., T, rope), adjacent pairs."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        c = CONFIG
        self.heads, self.nope, self.rope = (
            c["num_attention_heads"],
            c["qk_nope_head_dim"],
            c["qk_rope_head_dim"],
        )
        self.v, self.rank, d = c["v_head_dim"], c["kv_lora_rank"], c["hidden_size"]
        self.q_proj = linear(self.heads * (self.nope + self.rope), d)
        self.kv_a_proj_with_mqa = linear(self.rank + self.rope, d)
        self.kv_a_layernorm = RMSNorm(self.rank)
        self.kv_b_proj = linear(self.heads * (self.nope + self.v), self.rank)
        self.o_proj = linear(d, self.heads * self.v, scale=0.1)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, -1).transpose(1, 2)  # (B, heads, T, nope + rope)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.rank, self.rope], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(B, T, self.heads, -1).transpose(1, 2)
        k_nope, v = kv.split([self.nope, self.v], dim=-1)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], cos, sin)], dim=-1)
        k_rope = rotate(k_rope, cos, sin)[:, None].expand(B, self.heads, T, self.rope)
        k = torch.cat([k_nope, k_rope], dim=-1)
        # CPU flash attention wants one width for keys and values: 32 + 32 = 64 here.
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj = linear(CONFIG["intermediate_size"], CONFIG["hidden_size"])
        self.down_proj = linear(CONFIG["hidden_size"], CONFIG["intermediate_size"], scale=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.relu(self.up_proj(x)).square())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(CONFIG["hidden_size"]), Attention()
        self.post_attention_layernorm, self.mlp = RMSNorm(CONFIG["hidden_size"]), Mlp()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Plm(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"])
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Block() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = RMSNorm(CONFIG["hidden_size"])
        half = torch.arange(0, CONFIG["qk_rope_head_dim"], 2) / CONFIG["qk_rope_head_dim"]
        angle = torch.outer(
            torch.arange(CONFIG["max_position_embeddings"]), CONFIG["rope_theta"] ** -half
        )
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for block in self.layers:
            x = block(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)
