"""Train the demo model: a small PLM-style model (MLA, squared ReLU, no gate, tied embedding).

    python tools/train_demo.py --corpus TALES.txt --out WORK --minutes 90

needs torch, tokenizers and safetensors. The text has one paragraph a line; its last 5 % is never
trained on. A checkpoint is written every 5 minutes of training; the same command goes on from it.
The result, WORK/demo, is a Hugging Face folder in bf16. docs/demo-model.md says what came out.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from demo_model import CONFIG, Plm
from demo_text import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    IM_END,
    IM_START,
    Rows,
    split_corpus,
    train_tokenizer,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by five Newton-Schulz steps (Jordan et al., 2024)."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.0
    ):
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
    """Share of the peak rate: warm up over 2 % of the training, decay over the last 60 %."""
    return min(1.0, progress / 0.02, max(0.0, (1 - progress) / 0.6))


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
    tensors = {
        f"model.{k}": v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()
    }
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="UTF-8 text, one paragraph a line"
    )
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
            print(
                f"step {step} {elapsed / 60:.1f} min loss {average:.3f} "
                f"ids {tokens} rate {rate:.3f}",
                flush=True,
            )
        if elapsed - saved_at > 300 or elapsed >= budget:
            saved_at = elapsed
            state = {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
            }
            torch.save(state | {"elapsed": elapsed, "step": step}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            save_hf(model, tokenizer, args.out / "demo")
            bits = bits_per_byte(model, tokenizer, held_out[:60_000], args.length)
            print(f"  held-out (first 60 KB) {bits:.3f} bits a byte", flush=True)
            print(
                "  " + reply(model, tokenizer, "Tell me a tale about a fox", seed=step)[:300],
                flush=True,
            )
            last = time.monotonic()
    bits = bits_per_byte(model, tokenizer, held_out, args.length)
    print(f"held-out {bits:.4f} bits a byte over {len(held_out.encode())} bytes")


if __name__ == "__main__":
    main()
