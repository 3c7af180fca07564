"""Replays a plan on files: stream, apply, copy, hash, verify, publish. Knows no method."""

from weightguard.checkpoint.writer import check_apart
from weightguard.rewrite.apply import Change
from weightguard.rewrite.as_adapter import write_factors
from weightguard.rewrite.card import totals
from weightguard.rewrite.companions import check_companions
from weightguard.rewrite.made import publish_adapter
from weightguard.rewrite.manifest import Manifest, identity
from weightguard.rewrite.publish import Options, counted, rewrite
from weightguard.rewrite.recount import recount_factors
from weightguard.rewrite.stage import Stage, check_space, check_target
from weightguard.rewrite.stream import all_tensors
from weightguard.rewrite.verify import Verified, verify_against, verify_output

__all__ = [
    "Change", "Manifest", "Options", "Stage", "Verified", "all_tensors", "check_apart", "check_companions",
    "check_space", "check_target", "counted", "identity", "publish_adapter", "recount_factors",
    "rewrite", "totals", "verify_against", "verify_output", "write_factors",
]  # fmt: skip
