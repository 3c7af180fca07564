"""Token ids and counted positions, against a tokenizer of whole words built here."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from weightguard.data import Dataset, Row, check_vocabulary, encode
from weightguard.data.templates import ALPACA_OPENING, template_for
from weightguard.errors import DataError, UsageError

WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    "<user>",
    "<assistant>",
    "<system>",
    "<end>",
    "a",
    "b",
    "c",
    "d",
    "###",
    "Instruction",
    "Response",
]
ID = {word: number for number, word in enumerate(WORDS)}
CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools\nhere') }}{% endif %}"
    "<{{ message.role }}> {{ message.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def _tokenizer(chat_template: str | None = CHAT, end: str | None = "</s>") -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ID["<s>"])])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=end, unk_token="<unk>")
    made.chat_template = chat_template
    return made


def _dataset(*rows: Row) -> Dataset:
    return Dataset(rows, "rows.jsonl", "0" * 64, 0, ())


def _words(ids: np.ndarray) -> str:
    return " ".join(WORDS[number] for number in ids)


def _counted(encoded) -> str:
    return _words(encoded.ids[encoded.counted])


def _talk(*turns: tuple[str, str]) -> Row:
    messages = tuple({"role": role, "content": content} for role, content in turns)
    answer = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
    return Row("a", answer, messages=messages, number=1)


PAIR = Row("a b", "c d", number=1)
TALK = _talk(("system", "d"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d d"))


def test_chat_row_is_the_rendered_conversation_with_one_begin_token() -> None:
    found = encode(_dataset(PAIR), _tokenizer())
    [row] = found.rows
    assert _words(row.ids) == "<s> <user> a b <end> <assistant> c d <end>"
    assert (row.ids.dtype, row.counted.dtype, row.number) == (np.int64, np.bool_, 1)
    assert row.counted.all()
    assert (found.counted_tokens, found.total_tokens, found.truncated, found.without_response) == (9, 9, 0, 0)
    assert (found.template, found.tokens, found.source, found.sha256) == ("chat", "all", "rows.jsonl", "0" * 64)
    assert found.template_sha256 == hashlib.sha256(CHAT.encode()).hexdigest()


def test_response_tokens_are_what_follows_the_common_prefix() -> None:
    found = encode(_dataset(PAIR), _tokenizer(), tokens="response")
    assert _counted(found.rows[0]) == "c d <end>"
    assert (found.counted_tokens, found.total_tokens) == (3, 9)


def test_a_template_that_writes_more_than_it_asks_for_counts_from_where_the_two_part() -> None:
    thinking = CHAT.replace(
        "{{ message.content }}", "{% if message.role == 'assistant' %}b {% endif %}{{ message.content }}"
    )
    assert _counted(encode(_dataset(PAIR), _tokenizer(thinking), tokens="response").rows[0]) == "b c d <end>"
    asks_more = CHAT.replace("<assistant> {% endif %}", "<assistant> a {% endif %}")
    assert _counted(encode(_dataset(PAIR), _tokenizer(asks_more), tokens="response").rows[0]) == "c d <end>"


def test_of_a_conversation_the_last_assistant_message_is_the_response() -> None:
    assert _counted(encode(_dataset(TALK), _tokenizer(), tokens="response").rows[0]) == "d d <end>"
    assert "<system> d <end> <user> a" in _words(encode(_dataset(TALK), _tokenizer()).rows[0].ids)


def test_a_row_without_response_is_a_prompt_that_waits_and_counts_only_under_all() -> None:
    waiting, open_talk = Row("a", None, number=1), _talk(("user", "a"), ("assistant", "b"), ("user", "c"))
    blank = Row("a", None, messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": " "}), number=1)
    found = encode(_dataset(waiting, open_talk, blank), _tokenizer())
    assert _words(found.rows[0].ids) == _words(found.rows[2].ids) == "<s> <user> a <end> <assistant>"
    assert _words(found.rows[1].ids).endswith("<user> c <end> <assistant>")
    assert (found.without_response, found.counted_tokens) == (3, found.total_tokens)
    some = encode(_dataset(waiting, PAIR), _tokenizer(), tokens="response")
    assert ([int(row.counted.sum()) for row in some.rows], some.without_response) == ([0, 3], 1)


def test_alpaca_where_the_tokenizer_has_no_template() -> None:
    found = encode(_dataset(PAIR), _tokenizer(None))
    words = _words(found.rows[0].ids).split()
    assert words[0] == "<s>" and words[-3:] == ["c", "d", "</s>"]
    assert words.count("###") == 2  # "### Instruction:" and "### Response:"
    assert len(words) == 1 + len(ALPACA_OPENING.split()) + 2 + 2 + 2 + 3
    assert found.template == "alpaca" and len(found.template_sha256) == 64
    assert _counted(encode(_dataset(PAIR), _tokenizer(None), tokens="response").rows[0]) == "c d </s>"


def test_alpaca_takes_conversations_and_ends_only_with_an_end_token() -> None:
    found = encode(_dataset(TALK), _tokenizer(None, end=None), tokens="response")
    assert _counted(found.rows[0]) == "d d"
    assert _words(found.rows[0].ids).split().count("###") == 4


def test_a_template_may_be_insisted_on() -> None:
    assert encode(_dataset(PAIR), _tokenizer(), template="alpaca").template == "alpaca"
    named = _tokenizer()
    named.chat_template = {"default": CHAT, "tool_use": "x"}
    assert encode(_dataset(PAIR), named).template_sha256 == hashlib.sha256(CHAT.encode()).hexdigest()
    with pytest.raises(DataError, match=r"^the tokenizer has no chat template; give template alpaca, or leave it out$"):
        encode(_dataset(PAIR), _tokenizer(None), template="chat")


def test_text_rows_take_no_template_and_no_end() -> None:
    text = Row("a b", None, text="a b", number=1)
    found = encode(_dataset(text), _tokenizer())
    assert _words(found.rows[0].ids) == "<s> a b"
    assert (found.template, found.template_sha256, found.without_response) == ("none", "", 1)
    mixed = encode(_dataset(text, PAIR), _tokenizer())
    assert mixed.template == "chat"
    assert [_words(row.ids) for row in mixed.rows] == ["<s> a b", "<s> <user> a b <end> <assistant> c d <end>"]


def test_long_rows_keep_their_left_part_and_are_counted() -> None:
    found = encode(_dataset(PAIR, Row("a", None, number=2)), _tokenizer(), max_length=7, tokens="response")
    assert _words(found.rows[0].ids) == "<s> <user> a b <end> <assistant> c"
    assert _counted(found.rows[0]) == "c"
    assert (found.truncated, found.total_tokens) == (1, 12)


def test_the_day_does_not_change_the_tokens() -> None:
    source = "{{ strftime_now('%d %b %Y') }} {% set day = strftime_now('%a') %}{{ day + '!' }}"
    template = template_for(_tokenizer(source), None)
    assert template.render(PAIR, "x").prompt == "26 Jul 2024 Fri!"
    assert template.sha256 == hashlib.sha256(source.encode()).hexdigest()


def test_a_fixed_day_leaves_the_rest_of_a_template_alone() -> None:
    row = Row("a b", None, number=1)
    for start in ("\n\n", "  {% set x = 1 %}\n", "x"):
        source = start + "{{ messages[0].content }}{% if false %}{{ strftime_now('%d') }}{% endif %}\n"
        template = template_for(_tokenizer(source), None)
        plain = _tokenizer().apply_chat_template(
            [{"role": "user", "content": "a b"}], chat_template=source, tokenize=False
        )
        assert template.render(row, "x").prompt == plain


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (CHAT, "no tools"),
        ("{{ messages[7].role }}", "list object has no element 7"),
        ("{% for %}", "Expected an expression, got 'end of statement block'"),
        ("{{ 1 + 'x' }}", "unsupported operand type(s) for +: 'int' and 'str'"),
    ],
)
def test_a_template_that_refuses_a_row_names_it(template: str, told: str) -> None:
    row = Row("a", None, messages=({"role": "tool", "content": "a"},), number=12)
    with pytest.raises(DataError) as caught:
        encode(_dataset(row), _tokenizer(template))
    assert str(caught.value) == f"rows.jsonl, row 12: the chat template refuses the row ({told})"


def test_alpaca_has_no_place_for_other_roles() -> None:
    row = Row("a", None, messages=({"role": "tool", "content": "a"},), number=12)
    told = "rows.jsonl, row 12: role tool has no place in the Alpaca template; use system, user, assistant"
    with pytest.raises(DataError) as caught:
        encode(_dataset(row), _tokenizer(None))
    assert str(caught.value) == told


def test_nothing_to_count_is_an_error() -> None:
    with pytest.raises(DataError) as caught:
        encode(_dataset(Row("a", None, number=1)), _tokenizer(), tokens="response")
    told = "rows.jsonl: data with no countable token (no row has a response within the length limit)"
    assert str(caught.value) == f"{told}; give rows that have one"
    with pytest.raises(DataError, match="data with no countable token"):
        encode(_dataset(PAIR), _tokenizer(), tokens="response", max_length=6)
    silent = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, unk_token="<unk>")))
    with pytest.raises(DataError, match=r"^rows.jsonl, row 4: the tokenizer makes no token of it; remove the row$"):
        encode(_dataset(Row("", None, text="", number=4)), silent)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tokens": "some"}, "token set 'some' is unknown; give all or response"),
        ({"max_length": 0}, "max_length is 0; give 1 or more"),
        ({"template": "x"}, "template 'x' is unknown; give chat or alpaca, or leave it out"),
    ],
)
def test_options_out_of_range(options: dict, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        encode(_dataset(PAIR), _tokenizer(), **options)
    assert str(caught.value) == told


def test_an_id_beyond_the_vocabulary_names_row_and_id() -> None:
    found = encode(_dataset(PAIR, Row("d", None, number=7)), _tokenizer())
    check_vocabulary(found, len(WORDS))
    with pytest.raises(DataError) as caught:
        check_vocabulary(found, ID["d"])
    told = "token id 10 in row 1 is beyond the model's vocabulary of 10; tokenise with the tokenizer of this model"
    assert str(caught.value) == f"rows.jsonl: {told}"
    found.rows[1].ids[0] = -1
    with pytest.raises(DataError, match=r"token id -1 in row 7 is below 0;"):
        check_vocabulary(found, len(WORDS))
