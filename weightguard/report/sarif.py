"""SARIF 2.1.0: a result for every rule that does not pass, at its line of the policy.

Passing rules are listed with the tool and have no result: code scanning services show every result as an alert,
whatever its kind says. Undecided is of kind "open", whose level the standard fixes to "none".
"""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import quote

from weightguard.verdict import FAIL, PASS, Reason, Verdict

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(verdict: Verdict) -> str:
    """One log with one run."""
    artifacts = [_artifact(name, digest) for name, digest in sorted(verdict.model.files.items())]
    policy = {"location": {"uri": _policy_uri(verdict)}, "hashes": {"sha-256": verdict.policy.sha256}}
    run = {
        "tool": {"driver": _driver(verdict)},
        "artifacts": [policy, *artifacts],
        "results": [_result(at, r, verdict) for at, r in enumerate(verdict.reasons) if r.status != PASS],
        "columnKind": "unicodeCodePoints",
        "properties": {"verdict": verdict.verdict, "model": verdict.model.label},
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False) + "\n"


def _driver(verdict: Verdict) -> dict[str, Any]:
    rules = [
        {"id": r.rule, "shortDescription": {"text": r.rule}, "fullDescription": {"text": f"Rule {r.rule} of the policy."},
         "defaultConfiguration": {"level": "error"}}
        for r in verdict.reasons
    ]  # fmt: skip
    return {"name": "weightguard", "version": verdict.version, "rules": rules}


def _result(index: int, reason: Reason, verdict: Verdict) -> dict[str, Any]:
    kind, level = ("fail", "error") if reason.status == FAIL else ("open", "none")
    where = {"artifactLocation": {"uri": _policy_uri(verdict), "index": 0}, "region": {"startLine": reason.line}}
    print_of = hashlib.sha256(f"{verdict.policy.name}|{reason.rule}".encode()).hexdigest()
    return {
        "ruleId": reason.rule,
        "ruleIndex": index,
        "kind": kind,
        "level": level,
        "message": {"text": f"{reason.status}: {reason.said}"},
        "locations": [{"physicalLocation": where}],
        "partialFingerprints": {"rule/v1": print_of},
        "properties": {"value": reason.value, "low": reason.low, "high": reason.high, "n": reason.n},
    }


def _artifact(name: str, digest: str) -> dict[str, Any]:
    return {"location": {"uri": _uri(name)}, "hashes": {"sha-256": digest}}


def _policy_uri(verdict: Verdict) -> str:
    return _uri(verdict.policy.file or "policy.toml")


def _uri(name: str) -> str:
    return quote(name, safe="/.-_~", errors="surrogatepass")
