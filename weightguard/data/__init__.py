"""Calibration data: a reference into rows (`read_rows`), rows into token ids (`encode`), and the prompts shipped.

Light to import: no torch, transformers, numpy, pyarrow or huggingface_hub before something needs them.
"""

from __future__ import annotations

from weightguard.data.cipher import Cipher, cipher
from weightguard.data.rows import Dataset, Row, read_rows
from weightguard.data.shipped import shipped_harmful, shipped_identity, shipped_multilingual, shipped_safety
from weightguard.data.tokens import Encoded, EncodedSet, check_vocabulary, encode, read_pretokenised

__all__ = [
    "Cipher",
    "Dataset",
    "Encoded",
    "EncodedSet",
    "Row",
    "check_vocabulary",
    "cipher",
    "encode",
    "read_pretokenised",
    "read_rows",
    "shipped_harmful",
    "shipped_identity",
    "shipped_multilingual",
    "shipped_safety",
]
