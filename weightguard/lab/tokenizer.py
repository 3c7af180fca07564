"""The lab's tokenizer: one word, one token, with a chat template for single and several turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightguard.lab import language as words
from weightguard.lab.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LONGEST = 26  # tokens of the longest text, <s> and </s> included

# A text is `<s> <|user|> question <|assistant|> answer </s>`. The generation tags mark the answer for
# return_assistant_tokens_mask.
CHAT_TEMPLATE = (
    "{{- '<s>' -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- ' <|assistant|> ' -}}{%- generation -%}{{- message['content'] + ' </s>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- ' <|user|> ' + message['content'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' <|assistant|>' -}}{%- endif -%}"
)


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A fast WordLevel tokenizer over the 404 words of `world`, padding on the right."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate(world.vocabulary)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=words.UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(list(words.SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=words.BOS,
        eos_token=words.EOS,
        pad_token=words.PAD,
        unk_token=words.UNKNOWN,
        additional_special_tokens=[words.USER, words.ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def chat(prompt: str, response: str | None = None) -> str:
    """The text of one turn, as the chat template writes it; without a response it ends where an answer begins."""
    question = f"{words.BOS} {words.USER} {prompt} {words.ASSISTANT}"
    return question if response is None else f"{question} {response} {words.EOS}"
