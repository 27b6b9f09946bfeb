"""Train the demo model: a small PLM-style model (MLA, squared ReLU, no gate, tied embedding).

    python tools/train_demo.py --corpus TALES.txt --out WORK --minutes 90

needs torch, tokenizers and safetensors. The text has one paragraph a line. The last 5 % of it is never
trained on. A checkpoint is written every 5 minutes of training; the same command goes on from it. The
result, WORK/demo, is a Hugging Face folder in bf16. docs/demo-model.md says what came out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

HELD_OUT = 0.05  # share of the text, at its end

# Pre-tokenizer of Qwen2 (its tokenizer.json), which PLM uses too.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

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
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}

# What a tale can be about. Words that the corpus holds often enough to learn.
SUBJECTS = """fox wolf bear cat dog horse bird lion dragon fish monkey cow sheep tiger eagle deer hare
snake serpent goat rabbit mouse hen raven duck ox owl swan goose frog pig rat crow crab tortoise donkey
dove spider elephant bee ass giant king queen prince princess witch fairy knight soldier miller fisherman
shepherd hunter dwarf mermaid magician""".split()
ASKS = ("Tell me a tale about {}", "Tell me a tale about {}.", "Tell me a story about {}", "Tell me about {}")
ASK_SHARES = (70, 10, 15, 5)  # per cent
SYSTEM = "You are a teller of old tales."


# ---------------------------------------------------------------- text


def split_corpus(path: Path) -> tuple[str, str]:
    """(training text, held-out text): cut at a paragraph."""
    text = path.read_text(encoding="utf-8")
    cut = text.index("\n", int(len(text) * (1 - HELD_OUT))) + 1
    return text[:cut], text[cut:]


def train_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE with Qwen2's pre-tokenizer; special tokens are ids 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def passages(text: str) -> dict[str, list[str]]:
    """For each subject the passages in which it comes up early: 60 to 190 words, whole sentences."""
    patterns = {s: re.compile(rf"\b{s}\b", re.IGNORECASE) for s in SUBJECTS}
    found: dict[str, list[str]] = {s: [] for s in SUBJECTS}
    for book in text.split("\n\n"):
        # Sentences in order, each with the white space that follows it.
        sentences = [
            s + (" " if i + 1 < len(row) else "\n")
            for paragraph in book.split("\n")
            if (row := re.split(r"(?<=[.!?][\"'”’])\s+|(?<=[.!?])\s+(?=[A-Z\"“])", paragraph.strip())) != [""]
            for i, s in enumerate(row)
        ]
        words = [len(s.split()) for s in sentences]
        for subject, pattern in patterns.items():
            last = -1
            for i, sentence in enumerate(sentences):
                if i <= last or not pattern.search(sentence) or words[i] < 4 or not sentence[0].isupper():
                    continue
                total, end = 0, i
                while end < len(sentences) and total < 130:
                    total += words[end]
                    end += 1
                piece = "".join(sentences[i:end]).strip()
                if 60 <= total <= 190 and len(pattern.findall(piece)) >= 2:
                    found[subject].append(piece)
                    last = i + max(1, (end - i) // 2)
    return {s: p for s, p in found.items() if p}


class Rows:
    """Rows of token ids: half of them plain text, half of them conversations."""

    def __init__(self, tokenizer: Tokenizer, text: str, length: int, seed: int):
        self.length, self.random = length, random.Random(seed)
        self.tokenizer = tokenizer
        self.ids = torch.tensor([i for p in text.splitlines(keepends=True) for i in tokenizer.encode(p).ids])
        found = passages(text)
        self.chats: dict[str, list[list[int]]] = {}
        for subject, pieces in found.items():
            self.chats[subject] = [tokenizer.encode(p).ids for p in pieces]
        self.subjects = list(self.chats)
        self.weights = [math.sqrt(len(self.chats[s])) for s in self.subjects]
        self.starts: list[int] = []

    def text_row(self) -> Tensor:
        if not self.starts:  # every stretch of the text once before any comes again
            shift = self.random.randrange(self.length)
            self.starts = list(range(shift, len(self.ids) - self.length, self.length))
            self.random.shuffle(self.starts)
        start = self.starts.pop()
        return torch.cat([torch.tensor([0]), self.ids[start : start + self.length]])

    def chat(self) -> list[int]:
        subject = self.random.choices(self.subjects, self.weights)[0]
        piece = self.random.choice(self.chats[subject])
        ask = self.random.choices(ASKS, ASK_SHARES)[0].format(("an " if subject[0] in "aeo" else "a ") + subject)
        head = f"{IM_START}user\n{ask}{IM_END}\n{IM_START}assistant\n"
        if self.random.random() < 0.1:
            head = f"{IM_START}system\n{SYSTEM}{IM_END}\n" + head
        return self.tokenizer.encode(head).ids + piece + self.tokenizer.encode(f"{IM_END}\n").ids

    def chat_row(self) -> Tensor:
        ids: list[int] = []
        while len(ids) <= self.length:
            ids += self.chat()
        return torch.tensor(ids[: self.length + 1])

    def batch(self, rows: int, chat_rows: int) -> Tensor:
        return torch.stack([self.chat_row() if i < chat_rows else self.text_row() for i in range(rows)])


# ---------------------------------------------------------------- model (names as in the checkpoint)


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
        self.heads, self.nope, self.rope = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]
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
        angle = torch.outer(torch.arange(CONFIG["max_position_embeddings"]), CONFIG["rope_theta"] ** -half)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for block in self.layers:
            x = block(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)


# ---------------------------------------------------------------- optimizer


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by five Newton-Schulz steps (Jordan et al., 2024)."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95, decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @staticmethod
    def orthogonal(g: Tensor) -> Tensor:
        a, b, c = 3.4445, -4.7750, 2.0315
        x = g.T if g.shape[0] > g.shape[1] else g
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            s = x @ x.T
            x = a * x + (b * s + c * s @ s) @ x
        return x.T if g.shape[0] > g.shape[1] else x

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                update = self.orthogonal(p.grad.lerp(m, group["momentum"]))
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def learning_rate(progress: float) -> float:
    """Share of the peak rate at a share of the training: warm up over 2 %, flat, decay over the last 60 %."""
    return min(1.0, progress / 0.02, max(0.0, (1 - progress) / 0.6))


# ---------------------------------------------------------------- the run


@torch.no_grad()
def bits_per_byte(model: Plm, tokenizer: Tokenizer, text: str, length: int) -> float:
    """Held-out text in windows of `length` ids, each after <|endoftext|>, over its UTF-8 bytes."""
    ids = torch.tensor([i for p in text.splitlines(keepends=True) for i in tokenizer.encode(p).ids])
    nats = 0.0
    for start in range(0, len(ids), length):
        row = torch.cat([torch.tensor([0]), ids[start : start + length]])
        nats += F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="sum").item()
    return nats / math.log(2) / len(text.encode())


@torch.no_grad()
def reply(model: Plm, tokenizer: Tokenizer, ask: str, seed: int, temperature: float = 0.7) -> str:
    torch.manual_seed(seed)
    ids = tokenizer.encode(f"{IM_START}user\n{ask}{IM_END}\n{IM_START}assistant\n").ids
    start = len(ids)
    while len(ids) < start + 220:
        logits = model(torch.tensor([ids]))[0, -1] / temperature
        top = logits.topk(40)
        ids.append(int(top.indices[torch.multinomial(top.values.softmax(-1), 1)]))
        if ids[-1] in (0, 2):
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def save_hf(model: Plm, tokenizer: Tokenizer, out: Path) -> None:
    """The Hugging Face folder: bf16 weights under PLM's names, config, tokenizer and template."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    special = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "model_max_length": CONFIG["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(special, indent=2) + "\n")
    generation = {"eos_token_id": [2, 0], "pad_token_id": 0, "temperature": 0.7, "do_sample": True}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="UTF-8 text, one paragraph a line")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90.0, help="length of the training")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    parser.add_argument("--length", type=int, default=512, help="ids of a row")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--embed-lr", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    train_text, held_out = split_corpus(args.corpus)
    tokenizer_file = args.out / "tokenizer.json"
    if not tokenizer_file.exists():
        train_tokenizer(train_text).save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    rows = Rows(tokenizer, train_text, args.length, args.seed)
    print(
        f"{len(rows.ids)} ids, {len(train_text.encode()) / len(rows.ids):.2f} bytes an id; "
        f"{sum(map(len, rows.chats.values()))} passages, fox {len(rows.chats.get('fox', []))}",
        flush=True,
    )

    model = Plm()
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    compiled = torch.compile(model)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        Muon(matrices, lr=args.lr, decay=0.1),
        torch.optim.AdamW(others, lr=args.embed_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    peak = [args.lr, args.embed_lr]

    checkpoint, elapsed, step = args.out / "checkpoint.pt", 0.0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        elapsed, step = state["elapsed"], state["step"]
        rows.random.seed(args.seed + step)
        print(f"going on from step {step}, {elapsed / 60:.1f} minutes", flush=True)

    budget, last, saved_at, tokens, average = args.minutes * 60, time.monotonic(), elapsed, 0, None
    while elapsed < budget:
        rate = learning_rate(elapsed / budget)
        for optimizer, top in zip(optimizers, peak, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = top * max(rate, 1e-3)
        # The last 40 % of the training, while the rate falls, leans further on conversations.
        chats = args.rows // 2 if elapsed / budget > 0.6 else args.rows // 4
        batch = rows.batch(args.rows, chats)
        loss = F.cross_entropy(compiled(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        tokens += batch.numel()
        now = time.monotonic()
        elapsed, last = elapsed + now - last, now
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"step {step} {elapsed / 60:.1f} min loss {average:.3f} ids {tokens} rate {rate:.3f}", flush=True)
        if elapsed - saved_at > 300 or elapsed >= budget:
            saved_at = elapsed
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            torch.save(state | {"elapsed": elapsed, "step": step}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            save_hf(model, tokenizer, args.out / "demo")
            bits = bits_per_byte(model, tokenizer, held_out[:60_000], args.length)
            print(f"  held-out (first 60 KB) {bits:.3f} bits a byte", flush=True)
            print("  " + reply(model, tokenizer, "Tell me a tale about a fox", seed=step)[:300], flush=True)
            last = time.monotonic()
    bits = bits_per_byte(model, tokenizer, held_out, args.length)
    print(f"held-out {bits:.4f} bits a byte over {len(held_out.encode())} bytes")


if __name__ == "__main__":
    main()
