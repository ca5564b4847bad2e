from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from align.chat import chat_loop, policy_folder
from align.data.chat import (
    Chat,
    check_prompts,
    end_of_turn,
    open_turn,
    render_chats,
    template_tokens,
)
from align.errors import ManifestError, StageError
from pts.engines.text import encode_problem
from pts.errors import ConfigError
from pts.types import Message, Problem
from tests.align import tiny

TEMPLATES = ("chatml", "chatml-newline")
SNIPPETS = ("", " ", "\n", "\n\n", " lead", "trail ", "é", "日本", "<|im", "user", "a\tb", "12+3")


def random_chat(seed: int) -> Chat:
    rng = random.Random(seed)
    turns = [Message("system", rng.choice(SNIPPETS))] * rng.randrange(2)
    for _ in range(rng.randrange(1, 4)):
        turns.append(Message("user", "".join(rng.choices(SNIPPETS, k=2))))
        turns.append(Message("assistant", "".join(rng.choices(SNIPPETS, k=2))))
    return tuple(turns)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("seed", range(20))
def test_mask_covers_the_assistants_text_and_its_end_of_turn(name: str, seed: int) -> None:
    made, chat = tiny.tokenizer(name=name), random_chat(seed)
    [row] = render_chats(made, [chat])
    learnt = made.decode([i for i, flag in zip(row.ids, row.mask, strict=True) if flag])
    assert learnt == "".join(f"{m.content}<|im_end|>" for m in chat if m.role == "assistant")
    whole = made.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in chat], tokenize=False
    )
    assert made.decode(row.ids) == whole


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("seed", range(20))
def test_each_turn_extends_the_last(name: str, seed: int) -> None:
    made, chat = tiny.tokenizer(name=name), random_chat(seed)
    turns = [i for i, message in enumerate(chat) if message.role == "assistant"]
    whole = render_chats(made, [chat])[0]
    for turn in turns:
        part = render_chats(made, [chat[: turn + 1]])[0]
        assert whole.ids[: len(part.ids)] == part.ids
        assert whole.mask[: len(part.mask)] == part.mask
        opened = open_turn(made, chat[:turn])
        assert part.ids[: len(opened)] == opened
        assert not any(part.mask[: len(opened)][-1:])


@pytest.mark.parametrize("seed", range(5))
def test_opened_turn_is_what_an_engine_continues(seed: int) -> None:
    made, chat = tiny.tokenizer(), random_chat(seed)
    assert open_turn(made, chat[:-1]) == encode_problem(made, Problem("p", chat[:-1], ""))


def test_partial_answer_is_continued_not_closed() -> None:
    made = tiny.tokenizer()
    partial = tuple(made("2 +", add_special_tokens=False)["input_ids"])
    asked = (Message("user", "1+1?"),)
    ids = open_turn(made, asked, partial)
    assert made.decode(ids).endswith("<|im_start|>assistant<|im_sep|>2 +")
    assert ids == (*open_turn(made, asked), *partial)
    with pytest.raises(StageError, match="nothing can follow"):
        open_turn(made, asked, (*partial, made.convert_tokens_to_ids("<|im_end|>")))


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_of_the_template(name: str) -> None:
    made = tiny.tokenizer(name=name)
    assert end_of_turn(made) == "<|im_end|>"
    sep = ["<|im_sep|>"] if name == "chatml" else []
    assert template_tokens(made) == ["<|im_start|>", *sep, "<|im_end|>"]


def test_template_without_marks_is_refused() -> None:
    made = tiny.tokenizer()
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(StageError, match="without generation marks"):
        render_chats(made, [random_chat(0)])
    made.chat_template = None
    with pytest.raises(StageError, match="no chat template"):
        render_chats(made, [random_chat(0)])


def test_end_of_turn_outside_the_marks_is_refused() -> None:
    made = tiny.tokenizer()
    made.chat_template = (
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "<|im_end|>{% endfor %}"
    )
    with pytest.raises(StageError, match="not learn to stop"):
        end_of_turn(made)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Two newlines merge into one token, and leading blanks are trimmed from offsets."""
    alphabet = [*tiny.SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
    vocab = {token: index for index, token in enumerate(alphabet)}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.post_processor = processors.ByteLevel(trim_offsets=True)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=tiny.SPECIALS[0],
        additional_special_tokens=list(tiny.SPECIALS[1:]),
    )
    made.chat_template = tiny.template("chatml-newline")
    return made


def test_no_token_spans_the_border_between_prompt_and_answer() -> None:
    made = merging_tokenizer()
    chat = (Message("user", "q"), Message("assistant", "\nleading newline"))
    [row] = render_chats(made, [chat])
    opened = open_turn(made, chat[:1])
    assert row.ids[: len(opened)] == opened
    assert row.mask == (0,) * len(opened) + (1,) * (len(row.ids) - len(opened) - 1) + (0,)
    assert not check_prompts(made, [chat], [row])


def test_prompts_that_a_tokenizer_changes_are_found() -> None:
    made, chat = tiny.tokenizer(), random_chat(1)
    [row] = render_chats(made, [chat])
    shifted = type(row)(row.ids[1:], row.mask[1:])
    assert len(check_prompts(made, [chat], [shifted])) == 1


def test_a_model_without_a_chat_template_does_not_chat(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no chat template, as is usual for a base model"):
        chat_loop(tiny.save(tmp_path), 0.0, 1)


def test_temperature_0_is_greedy_whatever_the_model_comes_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many chat models are published with a generation config that samples."""
    folder = tiny.save(tmp_path)
    tiny.tokenizer().save_pretrained(folder)
    settings = {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    said = set()
    for seed in range(4):
        lines = iter(["1+2", ""])
        monkeypatch.setattr("align.chat._ask", lambda lines=lines: next(lines))
        torch.manual_seed(seed)
        chat_loop(folder, 0.0, 12)
        said.add(capsys.readouterr().out)
    assert len(said) == 1


def test_a_policy_that_is_gone_is_told(tmp_path: Path) -> None:
    record = {"seconds": 1, "metrics": {}, "model": "sft/model"}
    (tmp_path / "manifest.json").write_text(json.dumps({"stages": {"sft": record}}))
    with pytest.raises(ManifestError, match=r"sft/model: holds no config\.json"):
        policy_folder(tmp_path)
