"""Rows as users of TRL, Axolotl and LLaMA-Factory have them: read, or refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="pip install hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from align.data.chat import ChatIds, IdPair
from align.data.formats import FORMS, Conversation, Preference, RowFormat
from pts.types import Message

QUICK = settings(max_examples=100, deadline=None, derandomize=True, database=None)
SYSTEM, USER, MODEL = Message("system", "S"), Message("user", "U"), Message("assistant", "A")
U, A = {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}
B = {"role": "assistant", "content": "B"}
HUMAN, GPT = {"from": "human", "value": "U"}, {"from": "gpt", "value": "A"}


def chat(row: dict[str, Any], **more: Any) -> Any:
    return RowFormat("chats", **more).read(row)


def pair(row: dict[str, Any], **more: Any) -> Any:
    return RowFormat("pairs", **more).read(row)


ONE = Conversation((USER, MODEL), (True,))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [U, A]},
        {"messages": [U, {**A, "tool_calls": [], "name": None}], "id": 7, "source": "x"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "U"}]}, A]},
        {"conversations": [HUMAN, GPT]},
        {"messages": [HUMAN, {**GPT, "weight": 1}]},
        {"prompt": "U", "completion": "A"},
        {"prompt": [U], "completion": [A]},
        {"prompt": [U], "completion": "A"},
        {"instruction": "U", "output": "A", "input": ""},
        {"instruction": "U", "output": "A", "input": None, "history": []},
    ],
)
def test_every_form_of_one_exchange_is_the_same_chat(row: dict[str, Any]) -> None:
    assert chat(row) == ONE


def test_system_prompts_inputs_and_histories() -> None:
    assert chat({"conversations": [HUMAN, GPT], "system": "S"}) == Conversation(
        (SYSTEM, USER, MODEL), (True,)
    )
    row = {"instruction": "do", "input": "it", "output": "A", "history": [["U", "A"]]}
    assert chat(row) == Conversation((USER, MODEL, Message("user", "do\nit"), MODEL), (True, True))


def test_keys_of_turns_decide_what_is_trained() -> None:
    for key, off in (("train", False), ("loss", False), ("weight", 0)):
        row = {"messages": [U, {**A, key: off}, {**U, key: off}, A]}
        assert chat(row).trained == (False, True), key
    assert chat({"messages": [U, A, U, A]}, last_turn=True).trained == (False, True)
    assert chat({"prompt": [U, A, U], "completion": [A]}).trained == (False, True)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "U", "chosen": "A", "rejected": "B"},
        {"prompt": [U], "chosen": [A], "rejected": [B]},
        {"prompt": "U", "chosen": [U, A], "rejected": [U, B], "score_chosen": 7.0},
        {"chosen": [U, A], "rejected": [U, B]},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {**GPT, "value": "B"}},
        {"chosen": "\n\nHuman: U\n\nAssistant: A", "rejected": "\n\nHuman: U\n\nAssistant: B"},
    ],
)
def test_every_form_of_one_preference_is_the_same_pair(row: dict[str, Any]) -> None:
    assert pair(row) == Preference((USER,), "A", "B")


def test_ids_are_taken_as_they_are() -> None:
    assert chat({"input_ids": [5, 6], "labels": [-100, 6]}) == ChatIds((5, 6), (0, 1))
    assert chat({"input_ids": [5, 6], "completion_mask": [0, 1]}) == ChatIds((5, 6), (0, 1))
    assert chat({"input_ids": [5, 6]}) == ChatIds((5, 6), (1, 1))
    row = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3, 4]}
    assert pair(row) == IdPair((1,), (2,), (3, 4))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"text": "x"}, "no columns that are known: it has 'text'; give input_ids, or messages"),
        ({"messages": [U]}, "messages must end with the assistant's turn"),
        ({"messages": []}, "messages: messages with role and content are needed, not []"),
        ({"messages": [U, {**A, "role": "tool"}]}, "role must be one of system, user, assistant"),
        ({"messages": [U, {**A, "name": "x"}]}, 'messages.1.name is "x", and no key of that name'),
        ({"messages": [U, {**A, "content": None}]}, "messages.1: role and content are needed"),
        ({"messages": [U, {**A, "tool_calls": [1]}]}, "messages.1.tool_calls is [1], which"),
        ({"messages": [U, {**A, "reasoning_content": "r"}]}, "messages.1.reasoning_content is"),
        ({"messages": [U, {**A, "weight": 0.5}]}, "messages.1.weight is 0.5; a turn is trained"),
        ({"messages": [U, {**A, "weight": 1, "train": False}]}, "contradict each other"),
        ({"messages": [{**U, "train": True}, A]}, "messages.0: only the assistant's turns"),
        ({"messages": [U, A], "tools": [1]}, "tools is [1], which"),
        ({"messages": [U, A], "weight": 0.5}, "weight is 0.5, which"),
        ({"messages": [U, A], "images": ["a"]}, 'images is ["a"], which'),
        ({"prompt": "U", "completion": "A", "label": False}, "label is true or false: rows of KTO"),
        ({"prompt": "U", "completion": "A", "label": 0}, "rows of KTO (here 0) train no stage"),
        ({"prompt": "U", "completion": "A", "label": 1.0}, "rows of KTO (here 1.0) train no stage"),
        ({"prompt": "U", "completion": "A", "label": "True"}, 'rows of KTO (here "True") train no'),
        ({"prompt": "U", "completion": "A", "label": "0"}, 'rows of KTO (here "0") train no stage'),
        ({"messages": [A]}, "messages: begins with the assistant's turn, which answers no prompt"),
        ({"conversations": [GPT, HUMAN, GPT]}, "messages: begins with the assistant's turn"),
        ({"prompt": [A, U], "completion": "A"}, "messages: begins with the assistant's turn"),
        ({"messages": [{"role": "system", "content": "S"}, U, A], "system": "S"}, "keep one"),
        ({"prompt": '[{"role": "user"}]', "completion": "A"}, "messages are given as text"),
        ({"prompt": [U], "completion": [U, A]}, "completion must begin with the assistant's turn"),
        ({"instruction": 7, "output": "A"}, "instruction: text is needed, not 7"),
        ({"instruction": "U", "output": "A", "history": 7}, "history: pairs of texts are needed"),
        ({"input_ids": [1], "labels": [2]}, "labels.0 is 2; give the id there, or -100"),
        ({"input_ids": [1], "labels": [1, 2]}, "labels: one value for each of 1 ids"),
        ({"input_ids": [-1]}, "input_ids: token ids are needed, not [-1]"),
        ({"input_ids": [1], "labels": [1], "completion_mask": [1]}, "keep one"),
        ("not JSON (x)", "not JSON (x)"),
    ],
)
def test_what_cannot_be_honoured_is_refused(row: Any, fault: str) -> None:
    assert fault in chat(row)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"chosen": "A", "rejected": "B"}, "text without a prompt"),
        ({"chosen": [U, A], "rejected": [U]}, "must end with the assistant's turn"),
        ({"chosen": [U, A, U, A], "rejected": [U, B]}, "must differ in their last turn alone"),
        ({"chosen": [A], "rejected": [B]}, "the prompt must end with the user's turn"),
        (
            {"chosen": [A, U, A], "rejected": [A, U, B]},
            "messages: begins with the assistant's turn",
        ),
        ({"prompt": "U", "chosen": [{**A, "train": True}], "rejected": [B]}, "no meaning in pairs"),
        ({"messages": [U, A]}, "give prompt_ids and chosen_ids and rejected_ids, or chosen and"),
        ({"prompt_ids": [1], "chosen_ids": [], "rejected_ids": [1]}, "chosen_ids: token ids"),
    ],
)
def test_pairs_that_cannot_be_used_are_refused(row: Any, fault: str) -> None:
    assert fault in pair(row)


def test_a_column_may_be_left_unread_on_purpose() -> None:
    row = {"messages": [U, A], "weight": 0.5, "tools": "[]x"}
    assert "or name the column in the source's `ignore`" in chat(row)
    assert chat(row, ignored=("weight", "tools")) == ONE


@pytest.mark.parametrize(
    ("form", "row", "fault"),
    [
        ("alpaca", {"messages": [U, A]}, "column 'instruction' is missing; it has 'messages'"),
        ("alpaca", {"instruction": "U", "output": None}, "column 'output' is null or empty"),
        ("messages", {"prompt": "U", "completion": "A"}, "column 'messages' is missing; it has"),
        ("messages", {"conversations": None}, "column 'messages' is missing; it has"),
        ("prompt_completion", {"prompt": "U"}, "column 'completion' is missing; it has 'prompt'"),
        ("ids", {"labels": [1]}, "column 'input_ids' is missing; it has 'labels'"),
    ],
)
def test_a_form_that_is_named_needs_its_columns(form: Any, row: dict[str, Any], fault: str) -> None:
    assert fault in chat(row, form=form)


def test_a_form_of_pairs_that_is_named_needs_its_columns() -> None:
    assert pair({"prompt": "U", "chosen": "A"}, form="preference").startswith(
        "column 'rejected' is missing"
    )
    assert pair({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": None}, form="ids") == (
        "column 'rejected_ids' is null or empty"
    )


def test_a_form_that_is_named_knows_mapped_and_ignored_columns() -> None:
    row = {"instruction": "U", "answer": "A", "output": "x"}
    assert chat(row, form="alpaca", columns={"output": "answer"}) == ONE
    assert chat(row, form="alpaca", ignored=("output",)) == (
        "column 'output' is missing; it has 'instruction', 'answer'"
    )
    assert chat({"q": "U", "a": None}, columns={"prompt": "q", "completion": "a"}) == (
        "column 'a' (the completion) is null or empty"
    )


def test_a_label_that_is_no_truth_value_is_not_read() -> None:
    for label in (2, "sports", None, []):
        assert chat({"messages": [U, A], "label": label}) == ONE
    assert chat({"messages": [U, A], "label": 1}, ignored=("label",)) == ONE


def test_a_system_prompt_may_stand_before_the_assistants_first_turn() -> None:
    read = chat({"conversations": [GPT, HUMAN, GPT], "system": "S"})
    assert read == Conversation((SYSTEM, MODEL, USER, MODEL), (True, True))


SAID = st.text(max_size=8)
ROWS = {
    "messages": st.tuples(SAID, SAID).map(
        lambda t: {"messages": [{**U, "content": t[0]}, {**A, "content": t[1]}]}
    ),
    "prompt_completion": st.tuples(SAID, SAID).map(lambda t: {"prompt": t[0], "completion": t[1]}),
    "alpaca": st.tuples(SAID, SAID).map(lambda t: {"instruction": t[0], "output": t[1]}),
    "ids": st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1).map(
        lambda rows: {
            "input_ids": [i for i, _ in rows],
            "completion_mask": [int(m) for _, m in rows],
        }
    ),
    "preference": st.tuples(SAID, SAID, SAID).map(
        lambda t: {"prompt": t[0], "chosen": t[1], "rejected": t[2]}
    ),
}


@pytest.mark.parametrize("form", ROWS)
@QUICK
@given(data=st.data())
def test_mapped_columns_hold_what_the_fields_would(form: str, data: Any) -> None:
    """Any names of columns, and any order, read as the fields themselves do."""
    row = data.draw(ROWS[form])
    names = data.draw(
        st.lists(
            st.text("abcxyz_", min_size=1).map(lambda t: f"own_{t}"),
            min_size=len(row),
            max_size=len(row),
            unique=True,
        )
    )
    columns = dict(zip(row, names, strict=True))
    renamed = [(columns[field], value) for field, value in row.items()]
    shuffled = dict(data.draw(st.permutations(renamed)))
    kind = "pairs" if form == "preference" else "chats"
    wanted = RowFormat(kind).read(row)
    assert not isinstance(wanted, str)
    assert RowFormat(kind, columns=columns).read(shuffled) == wanted
    assert form in [known for known, _ in FORMS[kind]]


@QUICK
@given(
    contents=st.lists(st.tuples(SAID, SAID, st.sampled_from([None, True, False, 0, 1])), min_size=1)
)
def test_the_flag_of_a_turn_is_its_own(contents: list[tuple[str, str, Any]]) -> None:
    turns: list[dict[str, Any]] = []
    for asked, said, flag in contents:
        turns += [{**U, "content": asked}, {**A, "content": said, "train": flag}]
    read = chat({"messages": turns})
    assert read.trained == tuple(flag is None or bool(flag) for *_, flag in contents)
    assert [m.content for m in read.messages] == [text for a, b, _ in contents for text in (a, b)]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "train", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@QUICK
@given(
    row=st.dictionaries(
        st.sampled_from(
            [
                "messages",
                "conversations",
                "prompt",
                "completion",
                "chosen",
                "rejected",
                "system",
                "instruction",
                "input",
                "output",
                "history",
                "input_ids",
                "labels",
                "weight",
                "label",
            ]
        ),
        VALUES,
    )
)
def test_whatever_stands_in_a_row_it_is_read_or_named_as_a_fault(row: dict[str, Any]) -> None:
    for kind in ("chats", "pairs"):
        found = RowFormat(kind).read(row)  # type: ignore[arg-type]
        assert isinstance(found, Conversation | Preference | ChatIds | IdPair) or found
