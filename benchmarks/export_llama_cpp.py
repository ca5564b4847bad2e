"""Exported GGUF files in llama.cpp against the same model in transformers.

    make test-servers

runs it among the others. Of every model folder a GGUF file is written as by `align export --gguf`,
loaded by llama.cpp's server (fp32 weights and KV cache, no flash attention), and compared: greedy
tokens as ids from the same prompt ids, ids of texts that are hard to cut, chats that both chat
templates write. Where greedy tokens part, the gap between the two likeliest logits in transformers
is told: near 0 is a tie that rounding decides. Further types of weights are compared by greedy
tokens alone. Tokenizers that no model here has are tried on texts with a random model.
The exit status is 1 if f32 parts at a gap above `TIE`, or text or chats differ.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from real_servers import NANO, running
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.circumstances import versions
from align.export.gguf_file import write_gguf
from align.export.gguf_tokenizer import CL100K, read_tokenizer
from align.export.model_folder import stop_ids
from align.models.load import template_text
from align.models.smollm2 import convert
from align.pipeline.recipe import load_recipe
from align.tasks.registry import build_task
from pts import load_model_and_tokenizer
from pts.types import Problem

TIE = 1e-3
"""Gap between two logits that fp32 sums in another order may close."""
LLAMA = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_ctx, params.warmup = 1, int(sys.argv[3]), False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.use_jinja = True
server = xllamacpp.Server(params)
while True:
    time.sleep(1)
"""
ASKED = [
    "What is the capital of France?", "Write one line of Python that reverses a list.",
    "Wie heißt die Hauptstadt von Österreich?", "Name three primes above 100.",
    "Translate 'good morning' into Spanish.", "1, 1, 2, 3, 5, 8, and then?",
    "Explain photosynthesis in one sentence.", "日本の首都はどこですか。", "Who wrote Hamlet?",
    "Is 91 a prime number?", "Give a synonym of 'quick'.", "What's 17 + 25?",
]  # fmt: skip
WORDS = """
river stone winter garden music bread window mountain letter ship candle forest doctor bridge
island mirror summer tiger planet village coffee thunder pencil harbour
"""
HARD = [
    "", " ", "  two  blanks ", "\n\n\nlines\n \n", "tab\there", "1234567890 12 3.14",
    "x=1;y=22\r\n", "½ ² ٣ Ⅷ",
    "it's I'M we'LL they've o'clock", "naïve café Ünïcödé", "日本語の文字",
    "emoji 👩‍👩‍👧 🇫🇷",
    "<|im_start|>user<|im_sep|>hi<|im_end|>", "<|im_start",
    "a<|endoftext|>b", "__init__(self):\n\tpass",
    "    indented\n        more", "…—“quotes”",
    "\u00a0nbsp\u2003em", "ｆｕｌｌ１２３", "ß ẞ ﬁ", "e\u0301 é",
]  # fmt: skip
CHATS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 1+1?\n"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b "},
     {"role": "user", "content": "c"}],
]  # fmt: skip


@contextmanager
def serving(python: str, gguf: Path, context: int) -> Iterator[str]:
    """URL of llama.cpp's server on a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running([python, "-c", LLAMA, str(gguf), str(port), str(context)], port, 300) as url:
        yield url


def post(url: str, path: str, body: dict[str, Any]) -> Any:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)


def asked(problem: Problem) -> str:
    """What a problem's last message says."""
    prompt = problem.prompt
    return prompt if isinstance(prompt, str) else prompt[-1].content


def prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Questions, words and word problems as ids, in the chat template if there is one."""
    problems = build_task(load_recipe("phi-nano").task).problems("test", count, 0)
    sentences = (f"Use the word '{word}' in a sentence." for word in WORDS.split())
    texts = [*ASKED, *sentences, *(asked(problem) for problem in problems)][:count]
    if tokenizer.chat_template is None:
        return [tokenizer(f"Question: {text}\nAnswer:")["input_ids"] for text in texts]
    chats = [[{"role": "user", "content": text}] for text in texts]
    return [
        list(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])
        for chat in chats
    ]


@torch.no_grad()
def parting(
    model: Any, prompt: Sequence[int], got: Sequence[int], stops: Sequence[int], limit: int
) -> tuple[int, float] | None:
    """The first step at which transformers' greedy token is another, and the gap between its two
    likeliest logits there; None for the same tokens.

    One pass over prompt and tokens tells it: up to the first difference both have the same prefix.
    A completion that llama.cpp ended must end in a stop token here.
    """
    logits = model(torch.tensor([[*prompt, *got]])).logits[0, len(prompt) - 1 :]
    best = logits.topk(2)
    for step, (first, second) in enumerate(best.values.tolist()):
        token = int(best.indices[step, 0])
        ended = step == len(got)
        same = (len(got) == limit or token in stops) if ended else token == got[step]
        if not same:
            return step, first - second
    return None


def compare_tokens(
    url: str, model: Any, asked: list[list[int]], stops: Sequence[int], limit: int
) -> dict[str, Any]:
    """How many prompts agree in all their greedy tokens, and where the others part first."""
    parts, tokens = [], 0
    for number, prompt in enumerate(asked):
        body = {"prompt": prompt, "n_predict": limit, "temperature": 0, "return_tokens": True}
        got = [t for t in post(url, "/completion", body)["tokens"] if t not in stops]
        tokens += len(got)
        if (found := parting(model, prompt, got, stops, limit)) is not None:
            parts.append({"prompt": number, "step": found[0], "gap": round(found[1], 6)})
    return {"prompts": len(asked), "new_tokens": tokens, "agree": len(asked) - len(parts),
            "first_differences": parts}  # fmt: skip


def compare_texts(url: str, tokenizer: Any) -> list[str]:
    """Texts that llama.cpp cuts in another way."""
    wrong = []
    for text in HARD:
        body = {"content": text, "add_special": False, "parse_special": True}
        want = tokenizer(text, add_special_tokens=False)["input_ids"]
        if post(url, "/tokenize", body)["tokens"] != want:
            wrong.append(text)
    return wrong


def compare_chats(url: str, tokenizer: Any) -> list[int]:
    """Numbers of the chats that llama.cpp's reading of the template writes in another way."""
    if tokenizer.chat_template is None:
        return []
    said = [post(url, "/apply-template", {"messages": chat})["prompt"] for chat in CHATS]
    want = [
        tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in CHATS
    ]
    bos = tokenizer.bos_token or ""
    return [
        k
        for k, (a, b) in enumerate(zip(said, want, strict=True))
        if a not in (b, b.removeprefix(bos))
    ]


def check_model(python: str, folder: Path, kinds: Sequence[str], count: int, limit: int) -> Any:
    """All comparisons of one model folder."""
    model, tokenizer = load_model_and_tokenizer(folder, dtype=torch.float32)
    stops = stop_ids(folder)
    asked = prompts(tokenizer, count)
    found: dict[str, Any] = {}
    for kind in kinds:
        with tempfile.TemporaryDirectory() as work:
            file = Path(work) / "model.gguf"
            write_gguf(folder, file, kind, "model")
            with serving(python, file, 1024) as url:
                found[kind] = compare_tokens(url, model, asked, stops, limit)
                if kind == "f32":
                    found["texts"] = {"tried": len(HARD), "differ": compare_texts(url, tokenizer)}
                    chats = compare_chats(url, tokenizer)
                    tried = len(CHATS) if tokenizer.chat_template else 0
                    found["chats"] = {"tried": tried, "differ": chats}
        print(f"{folder}: {kind}: {json.dumps(found[kind])}", flush=True)
    return found


def made_tokenizer(steps: Sequence[Any], whole_words: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE with these pre-tokenizers, learnt from the texts here."""
    bpe = Tokenizer(models.BPE(ignore_merges=whole_words))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([*ASKED, *HARD[:12], __doc__ or ""] * 3, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=specials[0], additional_special_tokens=specials[1:]
    )
    made.chat_template = template_text("chatml")
    return made


def check_tokenizers(python: str) -> dict[str, Any]:
    """Each pre-tokenizer that is written, on texts: a random Llama of two layers carries it."""
    split = pre_tokenizers.Split(Regex(CL100K), behavior="isolated")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    only_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    found = {}
    for steps, whole in (([words], False), ([digits, words], False), ([split, only_bytes], False),
                         ([split, only_bytes], True)):  # fmt: skip
        tokenizer = made_tokenizer(steps, whole)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
            bos_token_id=None, eos_token_id=0,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as work:
            LlamaForCausalLM(config).save_pretrained(work)
            tokenizer.save_pretrained(work)
            file = Path(work) / "model.gguf"
            write_gguf(Path(work), file, "f32", "tokenizer")
            name = read_tokenizer(Path(work), len(tokenizer)).pre
            with serving(python, file, 256) as url:
                found[name] = {"tried": len(HARD), "differ": compare_texts(url, tokenizer)}
        print(f"pre-tokenizer {name}: {json.dumps(found[name])}", flush=True)
    return found


def write_results(file: Path, name: str, found: Any, tokenizers: Any) -> None:
    """Put a model's results into the file; those of others stay."""
    held = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"models": {}}
    models = held["models"] | {name: found}
    data = {"versions": versions(), "tie": TIE, "models": models, "pre_tokenizers": tokenizers}
    file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def is_good(found: dict[str, Any]) -> bool:
    parts = found["f32"]["first_differences"]
    ties = all(part["gap"] <= TIE for part in parts)
    return ties and not found["texts"]["differ"] and not found["chats"]["differ"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--llama-cpp", required=True, help="Python of an environment with xllamacpp"
    )
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER",
                        help="model folders; phi-nano's base and SmolLM2 if not given")  # fmt: skip
    parser.add_argument("--types", default="f32,q8_0", help="of weights")
    parser.add_argument("--prompts", type=int, default=52)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens a prompt, at most")
    parser.add_argument("--output", type=Path, help="JSON file; other models in it stay")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folders = {name: Path(path) for name, _, path in (m.partition("=") for m in args.model)}
    folders = folders or {"phi-nano base": NANO, "SmolLM2-135M-Instruct": convert()}
    tokenizers = check_tokenizers(args.llama_cpp)
    found: dict[str, Any] = {}
    for name, folder in folders.items():
        kinds = args.types.split(",")
        found[name] = check_model(args.llama_cpp, folder, kinds, args.prompts, args.tokens)
        if args.output:
            write_results(args.output, name, found[name], tokenizers)
    good = all(map(is_good, found.values()))
    sys.exit(0 if good and not any(t["differ"] for t in tokenizers.values()) else 1)


if __name__ == "__main__":
    main()
