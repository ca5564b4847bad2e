"""A byte-level tokenizer, a random two-layer Phi-3 and a task of sums, for tests of training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from align.context import StageContext, StageEntry
from align.data.chat import Chat
from align.pipeline.recipe import Recipe, parse_recipe
from align.settings import data_folder
from align.stages import STAGES
from align.tasks.base import Split
from pts.types import Grade, Message, Problem, Verdict
from pts.verifiers.exact import ExactVerifier

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|pad|>")


def template(name: str = "chatml") -> str:
    return (data_folder("chat_templates") / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer(chat: bool = True, name: str = "chatml") -> PreTrainedTokenizerFast:
    """One token a byte; `chat=False` leaves the chat's special tokens out of the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = SPECIALS if chat else SPECIALS[:1]
    vocab = {token: index for index, token in enumerate([*specials, *alphabet])}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = {"additional_special_tokens": list(SPECIALS[1:4])} if chat else {}
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=SPECIALS[0],
        pad_token=SPECIALS[4] if chat else None,
        **special,
    )
    made.chat_template = template(name)
    return made


def model(vocab: int, seed: int = 0, tied: bool = False, **more: Any) -> Phi3ForCausalLM:
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 48}
    config = Phi3Config(
        vocab_size=vocab,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=0,
        **(size | more),
    )
    return Phi3ForCausalLM(config).eval()


def save(folder: Path, seed: int = 0, chat: bool = True, tied: bool = False) -> Path:
    """A base model's folder."""
    made = tokenizer(chat)
    made.chat_template = None
    model(len(made), seed, tied).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


class Sums:
    """Sums of two digits."""

    verifier = ExactVerifier(r"(\d)")

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        return [self._problem(split, seed, index) for index in range(n)]

    def demonstrations(self, n: int, seed: int) -> list[Chat]:
        asked = [self._problem("train", seed, index) for index in range(n)]
        return [(*p.prompt, Message("assistant", f"= {p.reference}")) for p in asked]  # type: ignore[misc]

    def few_shot(self, problem: Problem) -> Problem:
        return problem

    def _problem(self, split: Split, seed: int, index: int) -> Problem:
        rng = random.Random(f"{split} {seed} {index}")
        a, b = rng.randrange(5), rng.randrange(5)
        return Problem(f"{split}-{seed}-{index}", (Message("user", f"{a}+{b}"),), str(a + b))


class ParityVerifier:
    """Passes completions with an even number of characters: random models pass about half."""

    def __call__(self, problem: Problem, text: str) -> Grade:
        return Grade(Verdict.PASS if len(text) % 2 == 0 else Verdict.FAIL)


class ParityTask(Sums):
    """Sums judged by the parity of the answer's length; demonstrations are 1 to 5 letters long."""

    verifier = ParityVerifier()  # type: ignore[assignment]

    def demonstrations(self, n: int, seed: int) -> list[Chat]:
        rng = random.Random(seed)
        chats = super().demonstrations(n, seed)
        answers = ["".join(rng.choices("xyz", k=rng.randrange(1, 6))) for _ in chats]
        return [(c[0], Message("assistant", a)) for c, a in zip(chats, answers, strict=True)]


class NeverVerifier:
    """Fails everything."""

    def __call__(self, problem: Problem, text: str) -> Grade:
        return Grade(Verdict.FAIL)


class NeverTask(Sums):
    """Sums that nobody solves."""

    verifier = NeverVerifier()  # type: ignore[assignment]


def recipe(base: Path, **stages: Any) -> Recipe:
    data = {
        "name": "test",
        "model": {"path": str(base), "device": "cpu"},
        "task": {"kind": "word_problems"},
        "sampling": {"temperature": 1.0, "max_new_tokens": 6},
        **stages,
    }
    return parse_recipe(data, "test")


def context(
    base: Path, folder: Path, task: Any = None, pairs: Path | None = None, **stages: Any
) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    made = recipe(base, **stages)
    kind = next((key for key in reversed(stages) if key in STAGES), "sft")
    entry = StageEntry(kind, kind, made.settings(kind))
    return StageContext(made, task or Sums(), entry, base, folder, pairs=pairs, progress=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
