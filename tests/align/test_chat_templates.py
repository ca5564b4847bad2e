"""Golden strings: what phi-4's published template renders, character by character."""

from __future__ import annotations

import jinja2
import pytest

from tests.align import tiny

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": " 1+1?\n"}
ASSISTANT = {"role": "assistant", "content": "2 "}
GOLDEN = {
    "chatml": (
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|>"
        "<|im_start|>user<|im_sep|> 1+1?\n<|im_end|>"
        "<|im_start|>assistant<|im_sep|>2 <|im_end|>"
    ),
    "chatml-newline": (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n 1+1?\n<|im_end|>\n"
        "<|im_start|>assistant\n2 <|im_end|>\n"
    ),
}
OPENED = {
    "chatml": "<|im_start|>assistant<|im_sep|>",
    "chatml-newline": "<|im_start|>assistant\n",
}


def render(name: str, *messages: dict[str, str], opened: bool = False) -> str:
    made = tiny.tokenizer(name=name)
    text = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
    return str(text)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    assert render(name, SYSTEM, USER, ASSISTANT) == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_no_default_system_prompt_and_nothing_around_the_turns(name: str) -> None:
    alone = GOLDEN[name][GOLDEN[name].index("<|im_start|>user") :]
    assert render(name, USER, ASSISTANT) == alone


@pytest.mark.parametrize("name", GOLDEN)
def test_generation_prompt_opens_the_assistants_turn(name: str) -> None:
    asked = GOLDEN[name][: GOLDEN[name].index("<|im_start|>assistant")]
    assert render(name, SYSTEM, USER, opened=True) == asked + OPENED[name]
    assert render(name, SYSTEM, USER) == asked


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("role", ["tool", "developer", ""])
def test_other_roles_are_refused(name: str, role: str) -> None:
    with pytest.raises(jinja2.TemplateError, match="knows the roles system, user and assistant"):
        render(name, USER, {"role": role, "content": "x"})
