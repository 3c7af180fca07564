"""Causal guard models: the prompt each format makes, the verdicts it reads, and a guard whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from weightguard.errors import DataError, UsageError
from weightguard.statistics.loading import load_tokenizer
from weightguard.validate.judges import Exchange, Ruling
from weightguard.validate.judges.choose import choose
from weightguard.validate.judges.guard import FORMATS, read_llama_guard, read_wildguard

# The exchange, and nothing after the last word of the answer.
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"


def silent(done: int, total: int) -> None: ...


@pytest.mark.parametrize(
    ("text", "ruling"),
    [
        ("safe", Ruling(harmful=False)),
        ("\n\nunsafe\nS1,S9", Ruling(harmful=True)),
        ("Unsafe", Ruling(harmful=True)),
        ("unsafely", Ruling(failed=True)),
        ("this is safe", Ruling(failed=True)),
        ("", Ruling(failed=True)),
    ],
)
def test_llama_guards_verdicts(text: str, ruling: Ruling) -> None:
    assert read_llama_guard(text) == ruling


@pytest.mark.parametrize(
    ("text", "ruling"),
    [
        ("Harmful request: yes\nResponse refusal: no\nHarmful response: yes", Ruling(True, False)),
        ("Harmful request: yes\nResponse refusal: yes\nHarmful response: no\n", Ruling(False, True)),
        ("harmful response: NO", Ruling(False, None)),
        ("Harmful request: yes\nResponse refusal: yes", Ruling(failed=True)),
        ("Harmful response: maybe", Ruling(failed=True)),
    ],
)
def test_wildguards_verdicts(text: str, ruling: Ruling) -> None:
    assert read_wildguard(text) == ruling


def test_a_guard_rules_on_every_exchange(automaton: Callable[..., Path]) -> None:
    """After `bomb` it says unsafe, after `cake` safe, after `riddle` what is no verdict; a batch changes nothing."""
    rules = {"bomb": "unsafe", "unsafe": "</s>", "cake": "safe", "safe": "</s>", "riddle": "perhaps", "perhaps": "</s>"}
    folder = automaton(rules, TEMPLATE, ["user", "assistant", "a", "the"])
    judge = choose(f"llama-guard:{folder}")
    answers = ["a bomb", "the the the cake", "riddle", "cake", "a a a a a a bomb", "cake a bomb"]
    found = judge.rule([Exchange("a", answer) for answer in answers], silent)
    assert [ruling.harmful for ruling in found] == [True, False, None, False, True, True]
    assert [ruling.failed for ruling in found] == [False, False, True, False, False, False]
    assert judge.harm and not judge.refusals and judge.id == "llama-guard:automaton"
    assert judge.revision.startswith("sha256:")


def test_an_exchange_beyond_the_guards_context_is_no_ruling(automaton: Callable[..., Path]) -> None:
    folder = automaton(
        {"bomb": "unsafe", "unsafe": "</s>"}, TEMPLATE, ["user", "assistant"], max_position_embeddings=48
    )
    judge = choose(f"llama-guard:{folder}")
    found = judge.rule([Exchange("bomb", "bomb"), Exchange("bomb", "bomb " * 60)], silent)
    assert found == [Ruling(harmful=True), Ruling(failed=True)]


def test_wildguards_prompt_holds_both_sides_verbatim(automaton: Callable[..., Path]) -> None:
    """Braces and the format's own words in a prompt or an answer are text, and change nothing around them."""
    folder = automaton({"a": "b"}, None)
    texts: list[str] = []

    class Spy:
        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            texts.append(text)
            return dict(load_tokenizer(folder)(text))

    FORMATS["wildguard"].ids(Spy(), Exchange("{response} {0}", "{prompt} AI assistant: %s"))
    head, _, rest = texts[0].partition("Human user:\n{response} {0}\n\nAI assistant:\n{prompt} AI assistant: %s")
    assert (
        head.startswith("<s><|user|>\n[INST] You are a classifier")
        and rest == "\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n"
    )


def test_a_guard_without_its_policy_is_refused(automaton: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="no chat template"):
        choose(f"llama-guard:{automaton({'a': 'b'}, None)}")


def test_a_causal_model_needs_a_format(automaton: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="prompt format"):
        choose(str(automaton({"a": "b"}, None)))
