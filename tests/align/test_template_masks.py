"""Properties of every chat template: what is masked, and that marks change no character."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="pip install hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from align.data.chat import check_prompts, end_of_turn, open_turn, render_chats, template_tokens
from align.errors import StageError
from align.models.load import FROM_TRL, published_text, template_text
from pts.types import Message

ENDS = {
    "chatml": "<|im_end|>",
    "chatml-newline": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "qwen2.5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "mistral": "</s>",
}
SPECIALS = (
    *("<s>", "</s>", "<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|eot_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"),
)
MISTRAL = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
TRIMMED = ("llama3", "gemma", "gemma3")
"""Templates that take blanks off the ends of content, as those of the models do."""
QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@cache
def tokenizer(name: str) -> Any:
    """One token a byte, and one for each special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate([*SPECIALS, *alphabet])}, merges=[])
    )
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(SPECIALS[2:]),
    )
    made.chat_template = template_text(name)
    return made


def decode(name: str, ids: Any) -> str:
    text = tokenizer(name).decode(ids, clean_up_tokenization_spaces=False)
    return str(text)


def written(name: str, content: str) -> str:
    """What a model of the family writes in a turn."""
    if name == "qwen3":
        content = "<think>\n\n</think>\n\n" + content.lstrip("\n")
    return (content.strip() if name in TRIMMED else content) + ENDS[name]


contents = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=12)


@st.composite
def chats(draw: Any, name: str, most: int = 3) -> list[Message]:
    """Chats of one to `most` exchanges, some with a system prompt where the template knows one."""
    found = []
    if name != "gemma" and draw(st.booleans()):
        found.append(Message("system", draw(contents)))
    for _ in range(draw(st.integers(1, most))):
        found += [Message("user", draw(contents)), Message("assistant", draw(contents))]
    return found


def runs(ids: Any, mask: Any) -> list[list[int]]:
    """The ids under each unbroken run of 1 in a mask."""
    found: list[list[int]] = [[]]
    for token, flag in zip(ids, mask, strict=True):
        if flag:
            found[-1].append(token)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


@pytest.mark.parametrize("name", ENDS)
@QUICK
@given(data=st.data())
def test_the_mask_covers_what_the_assistant_writes_and_no_more(name: str, data: Any) -> None:
    chat = data.draw(chats(name))
    [row] = render_chats(tokenizer(name), [chat])
    wanted = [written(name, m.content) for m in chat if m.role == "assistant"]
    assert [decode(name, run) for run in runs(row.ids, row.mask)] == wanted


@pytest.mark.parametrize("name", ENDS)
@QUICK
@given(data=st.data())
def test_a_flag_a_turn_decides_what_is_trained(name: str, data: Any) -> None:
    chat = data.draw(chats(name))
    spoken = [m.content for m in chat if m.role == "assistant"]
    flags = data.draw(st.lists(st.booleans(), min_size=len(spoken), max_size=len(spoken)))
    [row] = render_chats(tokenizer(name), [chat], [flags])
    wanted = [written(name, text) for text, flag in zip(spoken, flags, strict=True) if flag]
    assert [decode(name, run) for run in runs(row.ids, row.mask)] == wanted
    assert row.ids == render_chats(tokenizer(name), [chat])[0].ids


@pytest.mark.parametrize("name", ENDS)
@QUICK
@given(data=st.data())
def test_a_row_begins_with_the_ids_that_an_engine_continues(name: str, data: Any) -> None:
    chat = tuple(data.draw(chats(name, most=1)))
    [row] = render_chats(tokenizer(name), [chat])
    assert check_prompts(tokenizer(name), [chat], [row]) == []
    prompt = open_turn(tokenizer(name), chat[:-1])
    assert not any(row.mask[: len(prompt)])
    assert row.mask[len(prompt)]


@pytest.mark.parametrize("name", FROM_TRL)
@QUICK
@given(data=st.data())
def test_the_marks_change_no_character_of_the_published_template(name: str, data: Any) -> None:
    # Qwen3 leaves thinking blocks out of all turns but the last; its training variant does not.
    chat = data.draw(chats(name, most=1 if name == "qwen3" else 3))
    plain = [{"role": m.role, "content": m.content} for m in chat]
    [row] = render_chats(tokenizer(name), [chat])
    published = tokenizer(name).apply_chat_template(
        plain, tokenize=False, chat_template=published_text(name)
    )
    assert decode(name, row.ids) == published


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_turn_is_known(name: str) -> None:
    assert end_of_turn(tokenizer(name)) == ENDS[name]
    assert ENDS[name] in template_tokens(tokenizer(name))


def test_mistral_is_written_as_its_v7_tokenizer_has_it() -> None:
    chat = [Message("system", "S"), Message("user", "U"), Message("assistant", "A")]
    [row] = render_chats(tokenizer("mistral"), [[*chat, *chat[1:]]])
    assert decode("mistral", row.ids) == (
        "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]U[/INST]A</s>[INST]U[/INST]A</s>"
    )


# SentencePiece, as Mistral's tokenizers before v7 and Llama's before 3: a blank before a text


@cache
def sentencepiece(legacy: bool) -> Any:
    """A Llama tokenizer with Mistral's special tokens. `legacy`: a blank before every piece of text
    between special tokens; else only at the beginning."""
    specials = ["<unk>", "<s>", "</s>", *MISTRAL]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    texts = ["the answer is two", "what is one and one", "so it is two", "one and one is two"]
    bpe.train_from_iterator(texts * 9, trainer)
    held = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in held["merges"]]
    made = LlamaTokenizer(vocab=held["vocab"], merges=merges, legacy=legacy)
    made.add_special_tokens({"additional_special_tokens": list(MISTRAL)})
    made.chat_template = template_text("mistral")
    return made


words = st.lists(st.sampled_from(["one", "is", "answer", "", "é", "\n", "two"]), max_size=6)
spoken = st.one_of(words.map(" ".join), contents.filter(lambda text: "[" not in text))


@pytest.mark.parametrize("legacy", [True, False])
@QUICK
@given(data=st.data())
def test_pieces_have_the_ids_of_the_whole_text_behind_a_blank_too(legacy: bool, data: Any) -> None:
    made = sentencepiece(legacy)
    turns = data.draw(st.lists(st.tuples(spoken, spoken), min_size=1, max_size=3))
    chat = tuple(Message(r, t) for u, a in turns for r, t in (("user", u), ("assistant", a)))
    [row] = render_chats(made, [chat])
    text = made.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in chat], tokenize=False
    )
    assert row.ids == tuple(made(text, add_special_tokens=False)["input_ids"])
    opens, ends = (made.convert_tokens_to_ids(token) for token in ("[/INST]", "</s>"))
    at = 0
    for turn in range(1, len(chat), 2):  # each answer: behind [/INST], to its </s>
        prompt = open_turn(made, chat[:turn])
        assert row.ids[: len(prompt)] == prompt, "the very ids that an engine continues"
        assert prompt[-1] == opens
        assert not any(row.mask[at : len(prompt)])
        at = row.ids.index(ends, len(prompt)) + 1
        assert all(row.mask[len(prompt) : at])
    assert at == len(row.ids)


def test_a_blank_is_put_before_a_text_as_the_kind_of_tokenizer_does() -> None:
    chat = [Message("user", "what is one"), Message("assistant", "two")]
    for legacy, first in ((True, "\u2581two"), (False, "t")):
        made = sentencepiece(legacy)
        [row] = render_chats(made, [chat])
        place = row.mask.index(1)
        assert made.convert_ids_to_tokens(row.ids[place]) == first
        assert made.decode(list(row.ids[place:-1])) == "two"


def test_flags_need_a_mark_for_every_turn() -> None:
    chat = [Message("user", "U"), Message("assistant", "A")]
    with pytest.raises(StageError, match="marks 1 parts of a chat with 2 turns"):
        render_chats(tokenizer("chatml"), [chat], [[True, False]])
