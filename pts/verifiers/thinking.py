"""What models write between <think> and </think> is no part of their answer."""

from __future__ import annotations


def after_thinking(text: str) -> str:
    """What follows the thinking; what stands before it while it goes on.

    A completion that holds nothing but its thinking is read as it stands.
    """
    thought, end, said = text.rpartition("</think>")
    if not end:
        return text.partition("<think>")[0]
    return said if said.strip() else thought
