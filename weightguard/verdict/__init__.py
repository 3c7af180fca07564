"""Policy and verdict. Pure, standard library only, and closed: what is not shown to hold does not pass."""

from weightguard.verdict.joined import joined
from weightguard.verdict.policy import Limit, Policy, shipped_policy
from weightguard.verdict.rules import Binding, judge
from weightguard.verdict.verdict import FAIL, PASS, UNDECIDED, PolicyFile, Reason, Verdict

__all__ = [
    "FAIL", "PASS", "UNDECIDED", "Binding", "Limit", "Policy", "PolicyFile", "Reason", "Verdict", "joined",
    "judge", "shipped_policy",
]  # fmt: skip
