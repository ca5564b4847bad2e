"""A chat endpoint whose replies are scripted: what it says the k-th time to a prompt is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.align.scripted_judge import ScriptedJudge


class ScriptedChat(ScriptedJudge):
    """`with ScriptedChat(say) as server`: `say(text, k)` is the reply to the k-th call (from 0)
    whose last message is `text`; with "cut" as its beginning it is cut."""

    def __init__(self, say: Callable[[str, int], str]) -> None:
        super().__init__()
        self.say = say

    def answer(
        self, path: str, sent: str, body: dict[str, Any]
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        text = body["messages"][-1]["content"]
        with self._lock:
            self.bodies.append(body)
            before = self.asked[text]
            self.asked[text] += 1
        said = self.say(text, before)
        end = "length" if said.startswith("cut") else "stop"
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": end}
        usage = {"prompt_tokens": len(text), "completion_tokens": len(said)}
        return 200, {"choices": [choice], "usage": usage}, {}
