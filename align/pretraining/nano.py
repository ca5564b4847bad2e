"""phi-nano: a model of the Phi-3 architecture that fits a CPU, and its tokenizer.

The architecture is phi-4's with every number made small: RMSNorm, SwiGLU, rotary positions,
grouped-query attention over the whole context (no sliding window). The tokenizer is a byte-level
BPE that splits digits one by one. Its special tokens are phi-4's, and padding is not the end of
text. `BaseRecipe` holds everything that a base model depends on; `align.pretraining.loop`
trains it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from align.tasks.word_problems.solutions import StrategyMix
from align.tasks.word_problems.textbook import END_OF_TEXT, TextbookConfig, documents
from align.yaml_files import read_file
from pts.config import Settings, parse_settings

PAD = "<|pad|>"
CHAT_TOKENS = ("<|im_start|>", "<|im_sep|>", "<|im_end|>")
_ALSO = "system\nuser\nassistant\nSorry, I do not know."


class TokenizerConfig(Settings):
    """The byte-level BPE."""

    vocab_size: int = Field(1024, ge=300, le=4096)
    """Tokens in all: 256 bytes, the special tokens, and merges learnt from the textbook."""
    documents: int = Field(4000, ge=100)
    """Documents of the textbook that the merges are learnt from."""


class NetworkConfig(Settings):
    """Sizes of the network."""

    hidden: int = Field(128, ge=8)
    """Width of the residual stream."""
    layers: int = Field(4, ge=1)
    """Transformer blocks."""
    heads: int = Field(4, ge=1)
    """Query heads; they share the width between them."""
    kv_heads: int = Field(2, ge=1)
    """Key and value heads, shared by the query heads (phi-4 has one for four)."""
    feed_forward: int = Field(384, ge=8)
    """Inner width of the SwiGLU."""
    context: int = Field(1024, ge=64)
    """Longest sequence, in tokens."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the rotary frequencies."""
    initial_std: float = Field(0.06, gt=0)
    """Standard deviation of the initial weights; 0.02 suits wide models and starts slowly here."""


class Phase(Settings):
    """A stretch of training with its own optimizer, learning rate and manner of writing."""

    steps: int = Field(3300, ge=1)
    """Optimizer steps."""
    drill_steps: int = Field(0, ge=0)
    """First steps that see drills alone, in rows of half the length, small numbers first. Columns
    are additions modulo 10: without their tables a model this small makes no progress on them for
    many hundred steps."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak of the learning rate, which rises from nought and falls to nought, both linearly."""
    solutions: StrategyMix = StrategyMix(chain=0.0, careful=0.4)
    """Strategies of the worked answers."""


class PretrainingConfig(Settings):
    """The training loop: AdamW on packed rows, phase after phase."""

    phases: tuple[Phase, ...] = Field((Phase(drill_steps=1200),), min_length=1)
    """What is learnt in which order."""
    rows: int = Field(16, ge=4)
    """Rows in a batch."""
    row_tokens: int = Field(128, ge=32)
    """Tokens in a row; documents are packed one after the other, the last one is cut."""
    long_every: int = Field(4, ge=1)
    """Every so many steps the batch has a quarter of the rows, four times as long: few-shot
    prompts must be within the lengths that were trained."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of a phase in which the learning rate rises."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay of the matrices (Phi-4 uses 0.1)."""
    given_weight: float = Field(0.1, ge=0, le=1)
    """Loss weight of tokens that were drawn at random, such as a question's numbers; answers
    weigh 1."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    checkpoint_seconds: float = Field(60.0, gt=0)
    """Time between checkpoints, from which a killed run goes on."""

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def tokens(self) -> int:
        """Tokens of all batches."""
        batch = self.rows * self.row_tokens
        return sum(
            (p.steps - p.drill_steps) * batch + p.drill_steps * batch // 2 for p in self.phases
        )

    def phase(self, step: int) -> tuple[Phase, int]:
        """The phase that a step belongs to, and the step's number within it."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise ValueError(f"step lies {step} steps after the last phase")


class BaseRecipe(Settings):
    """All that a base model depends on; the same recipe on the same machine gives the same one."""

    seed: int = Field(0, ge=0)
    """Seed of the initial weights and of the text."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The vocabulary."""
    model: NetworkConfig = NetworkConfig()
    """The network."""
    textbook: TextbookConfig = TextbookConfig()
    """The pretraining text."""
    training: PretrainingConfig = PretrainingConfig()
    """The training loop."""

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that name the recipe."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=6).hexdigest()


def load_base_recipe(path: Path) -> BaseRecipe:
    """Read a base recipe. Raises `ConfigError` that lists all faults at once."""
    return parse_settings(BaseRecipe, read_file(path, "align pretrain"), str(path))


def build_tokenizer(recipe: BaseRecipe) -> PreTrainedTokenizerFast:
    """Learn the merges from the textbook (and from the role names of chats and a refusal)."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.tokenizer.vocab_size,
        special_tokens=[END_OF_TEXT, *CHAT_TOKENS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    drawn = itertools.islice(
        documents(recipe.textbook, recipe.training.phases[0].solutions, f"{recipe.seed}/tokenizer"),
        recipe.tokenizer.documents,
    )
    text = ("".join(part.text for part in document) for document in drawn)
    bpe.train_from_iterator(itertools.chain(text, [_ALSO] * 10), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=list(CHAT_TOKENS),
        model_max_length=recipe.model.context,
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: BaseRecipe, tokenizer: PreTrainedTokenizerFast) -> Phi3ForCausalLM:
    """A new model with weights drawn from torch's global generator."""
    size = recipe.model
    return Phi3ForCausalLM(
        Phi3Config(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            intermediate_size=size.feed_forward,
            max_position_embeddings=size.context,
            original_max_position_embeddings=size.context,
            rope_parameters={"rope_type": "default", "rope_theta": size.rope_theta},
            initializer_range=size.initial_std,
            sliding_window=None,
            tie_word_embeddings=True,
            attention_dropout=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
