"""A small Qwen2-style tokenizer, trained by the `tokenizers` package, and text that is odd."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from plm_edge.tokenizer.pretokenize import PATTERNS

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CORPUS = """\
The fox said: "I'm sure they'll come, they've got what we're after." It's 1,234.56 in 2024!
def main(args):\n    return {"key": [1, 2, 33], 'other': None}\n\n\nif x <= 10:\n\tprint("ok")\r\n
Äpfel, Öl und Straßenbahnen; façade, naïve, œuvre. Cửa Việt, Tiếng Việt. Česká řeč.
Съешь же ещё этих мягких французских булок. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.
我想在苹果公司工作。今天天气很好，我们去公园吧！ 日本語のテキストです。한국어 텍스트입니다.
السلام عليكم ورحمة الله وبركاته. שלום עולם. नमस्ते दुनिया, यह हिन्दी है। กำลังทดสอบภาษาไทย
🚀 👩‍🚀 👨‍👩‍👧‍👦 😶‍🌫️ ✅ 🦙 ❤️ AAAAAAAA aaaaaaaaaaaaaaaa ---------------- ================ ........
"""

ODD = [
    "", " ", "  ", "\n", "\r\n", "\r\n\r\n", "\t", " \t \n ", "\0", "a\0b", "\x1c\x1d\x85\u2028",
    "I'll 'LL 'S 's'S I'VE can't y'all 'ſ 'tis''re", "１２３ ⅔ ² Ⅷ 12345678901234567890",
    "\ufeffBOM",
    "e\u0301\u0323 u\u0308\u0304 \u0344 \u1e9b\u0323 \u212b \u2126 \uac00\u11a8 \u1100\u1161",
    "👨‍👩‍👧‍👦👩🏽‍🚀🏳️‍🌈🇩🇪 😶‍🌫️", "नमस्ते क्षत्रिय ज़िंदगी", "مرحبا بِسْمِ اللَّهِ",
    "\u202eRTL\u202c \u200b\u200d", "   many    spaces\n\n\n   \n and \n   lines   ",
    "x" * 300, "A" * 5000, " " * 5000, "\n" * 5000,
    "1" * 500, "!?" * 400, "e\u0301" * 500, "\u0315\u0300" * 500, "a\u0323" + "\u0315\u0300" * 200,
    "漢字" * 400, "🚀" * 300, "\U0010ffff\ufffe\ud7ff\ue000", "K\u212a \u017fs ǅ ß ẞ İ ı",
    "<|im_start|>user", "<|im_end", "<|endoftext|><|im_end|>x <|im_start|>", "[PAD7] <0x0A> ▁ Ġ Ċ",
]  # fmt: skip

SETTINGS = {
    "tokenizer_config.json": {
        "eos_token": {"content": "<|im_end|>"},
        "chat_template": "{{ messages[0].content }}",
    },
    "generation_config.json": {"eos_token_id": [2, 7]},
    "config.json": {"eos_token_id": 9, "bos_token_id": 0},
}


def train(vocab_size: int = 700, nfc: bool = True) -> Tokenizer:
    """Byte-level BPE of CORPUS with Qwen2's split."""
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERNS["qwen2"]), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    tokenizer.encode_special_tokens = True  # text stays text, as ours has it
    return tokenizer


def write_folder(folder: Path, tokenizer: dict[str, Any] | str, **files: Any) -> Path:
    """A Hugging Face folder with this tokenizer.json; `files` replaces small ones by stem."""
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    for name, settings in SETTINGS.items():
        settings = files.get(name.removesuffix(".json"), settings)
        (folder / name).write_text(json.dumps(settings), encoding="utf-8")
    return folder


def random_texts(seed: int, count: int) -> list[str]:
    """Texts of up to 60 characters from all of Unicode 3.2, scripts mixed or in runs.

    Later characters may be known to one library and not yet to the other.
    """
    rng = random.Random(seed)
    known = unicodedata.ucd_3_2_0
    letters = [
        c
        for c in map(chr, range(0x30000))
        if known.category(c) not in ("Cn", "Cs") and unicodedata.category(c) != "Cs"
    ]
    plain = " \n\t\r'sStTlL019.,!?-_aAeE\u0301\u0308\u0323\u200d"
    texts = []
    for _ in range(count):
        near = rng.randrange(len(letters) - 64)
        pools = [plain, letters[near : near + 64], letters]
        texts.append(
            "".join(
                rng.choice(rng.choice(pools)) * rng.choice((1, 1, 1, 2, 5))
                for _ in range(rng.randrange(1, 60))
            )
        )
    return texts
