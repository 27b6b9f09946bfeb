"""Text to ids and back: one byte-level BPE, the same on every device."""

from plm_edge.tokenizer.strings import StringArray
from plm_edge.tokenizer.tokenizer import Tokenizer

__all__ = ["StringArray", "Tokenizer"]
