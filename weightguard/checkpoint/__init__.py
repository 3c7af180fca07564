"""Files to tensors and back. Knows shards, names, dtypes and adapters; no method, no statistics, no model object."""

from weightguard.checkpoint.adapter import LoraPair, adapter_linears, bypassing, lora_pairs
from weightguard.checkpoint.card import base_model, front_matter
from weightguard.checkpoint.code_keys import named_code, without_choices, without_code
from weightguard.checkpoint.foreign import foreign_names
from weightguard.checkpoint.header import FLOATS, Header, TensorInfo
from weightguard.checkpoint.hub import Resolved, allowed_target, check_sha256, resolve
from weightguard.checkpoint.layout import opened, total_size
from weightguard.checkpoint.merged import Merged, check_pairing, check_same, may_lack, named_like
from weightguard.checkpoint.naming import (
    Family,
    Linear,
    decoder_linears,
    family_of,
    in_scope,
    is_known,
    match_linears,
    predicting_layers,
    sees,
)
from weightguard.checkpoint.reader import Checkpoint, check_editable, open_checkpoint, quantised, read_exactly
from weightguard.checkpoint.shapes import misfits

__all__ = [
    "FLOATS", "Checkpoint", "Family", "Header", "Linear", "LoraPair", "Merged", "Resolved", "TensorInfo",
    "adapter_linears", "allowed_target", "base_model", "bypassing", "check_editable", "check_pairing", "check_same",
    "check_sha256", "decoder_linears", "family_of", "foreign_names", "front_matter", "in_scope", "is_known", "lora_pairs",
    "match_linears", "may_lack", "misfits", "named_code", "named_like", "open_checkpoint", "opened", "predicting_layers",
    "quantised", "read_exactly", "resolve", "sees", "total_size", "without_choices", "without_code",
]  # fmt: skip
