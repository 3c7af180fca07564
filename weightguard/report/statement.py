"""An in-toto statement (v1) of type test-result (v0.1): subjects are the files of the checkpoint, by sha256.

It is not signed; sign it with a tool made for that. Undecided counts as failed: warned would mean that it passed.
"""

from __future__ import annotations

import json

from weightguard.verdict import PASS, Verdict


def statement(verdict: Verdict) -> str:
    """The statement, one JSON object."""
    told = {"name": verdict.policy.file or verdict.policy.name, "digest": {"sha256": verdict.policy.sha256}}
    data = [] if verdict.report is None else [
        {"name": f"data/{role}/{said['source']}", "digest": {"sha256": said["sha256"]}}
        for role, said in verdict.report.data.items()
    ]  # fmt: skip
    predicate = {
        "result": "PASSED" if verdict.verdict == PASS else "FAILED",
        "configuration": [told, *data],
        "passedTests": [r.rule for r in verdict.reasons if r.status == PASS],
        "warnedTests": [],
        "failedTests": [r.rule for r in verdict.reasons if r.status != PASS],
    }
    subjects = [{"name": n, "digest": {"sha256": digest}} for n, digest in sorted(verdict.model.files.items())]
    said = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": predicate,
    }
    return json.dumps(said, indent=2, ensure_ascii=False) + "\n"
