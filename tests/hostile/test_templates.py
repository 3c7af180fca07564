"""Chat templates that are programs: none may run code, read files, take for ever or fill the memory."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from weightguard.cli.main import main
from weightguard.data import bounded

STOPPED = "rows.jsonl: the chat template takes more than 1 s of CPU or {} MB of memory; it was stopped"
REFUSES = "rows.jsonl, row 1: the chat template refuses the row ("
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "a loop in a loop": LOOP,
    "a loop that fills the memory": '{% set n = namespace(s="ab") %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}',
    "a product of ten thousand million letters": "{{ 'x' * 10000000000 }}",
    "a power tower": "{{ 9 ** 99999999 }}",
    "a width of a thousand million": "{{ '%1999999999d' % 1 }}{{ '%1999999999d' % 2 }}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
}
FORBIDDEN = {
    "a way to all classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "a range beyond bounds": "{% for i in range(10000000) %}{% endfor %}",
    "an attribute by format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "a file to include": "{% include '/etc/passwd' %}",
    "a file to import": "{% import 'os' as os %}",
    "a list that is changed": "{{ messages.append(1) }}",
    "an exception of its own": "{{ raise_exception('no') }}",
    "no template at all": "{% for %}",
    "a name that is not there": "{{ open('/etc/passwd').read() }}",
}


@pytest.fixture
def said(
    tmp_path: Path, tokenizer: Path, checkpoint: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str]]:
    """A function: exit code and message of `stats` with this chat template."""

    def run(template: str) -> tuple[int, str]:
        model = tmp_path / "model"
        shutil.copytree(checkpoint("llama"), model)
        for file in (model / "chat_template.jinja", model / "chat_template.json"):
            file.unlink(missing_ok=True)
        (model / "chat_template.jinja").write_text(template)
        rows = tmp_path / "rows.jsonl"
        rows.write_text(json.dumps({"prompt": "how do i bake", "response": "sure"}) + "\n")
        capfd.readouterr()
        code = main(["stats", str(model), "--data", str(rows), "-o", str(tmp_path / "S")])
        assert not (tmp_path / "S").exists() or code == 0
        return code, capfd.readouterr().err.removeprefix("weightguard: ").strip().replace(f"{tmp_path}/", "")

    return run


@pytest.mark.parametrize("case", ENDLESS)
def test_stopped(case: str, said: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 1)
    monkeypatch.setattr(bounded, "MEMORY", 64 << 20)
    begin = time.process_time()
    code, message = said(ENDLESS[case])
    assert code == 3 and (message == STOPPED.format(64) or message.startswith(REFUSES)), message
    assert time.process_time() - begin < 10


@pytest.mark.parametrize("case", FORBIDDEN)
def test_refused(case: str, said: Callable[[str], tuple[int, str]]) -> None:
    code, message = said(FORBIDDEN[case])
    empty = (
        message == "rows.jsonl, row 1: the tokenizer makes no token of it; remove the row"
    )  # Jinja answers with nothing
    assert code == 3 and (message.startswith(REFUSES) or empty) and "\n" not in message, message


def test_a_template_of_a_megabyte(said: Callable[[str], tuple[int, str]]) -> None:
    assert said("{# " + "x" * 1_000_000 + " #}") == (
        3,
        "the chat template has 1000006 characters, more than 1000000; give template alpaca",
    )


def test_what_a_template_does_stays_in_the_child(said: Callable[[str], tuple[int, str]]) -> None:
    template = (
        "{% for message in messages %}{% set _ = message.update({'content': 'x'}) %}{{ message.content }}{% endfor %}"
    )
    code, message = said(template)
    assert code == 3 and message.startswith(REFUSES)  # the sandbox lets nothing be changed
    said_again = bounded.bounded(lambda: [1, "two", None], 3, "x")
    assert said_again == [1, "two", None]
