"""GGUF files and Modelfiles: read back, the same weights, tokens and settings; the rest refused."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from align.errors import ExportError
from align.export.gguf_file import write_gguf
from align.export.gguf_tokenizer import CL100K, pre_tokenizer, read_tokenizer
from align.export.model_folder import read_object
from align.export.ollama import go_template, modelfile
from align.export.quantize import check_type, write_quantized
from align.export.run import OWN, ExportConfig, export
from pts.errors import MissingExtra
from tests.align import tiny
from tests.align.exports import write_policy, write_run

SAMPLING = {"temperature": 0.7, "top_k": 0, "top_p": 0.95, "min_p": 0.0, "max_new_tokens": 140}


@pytest.fixture
def gguf() -> Any:
    return pytest.importorskip("gguf", reason="pip install 'three-stage[export]'")


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("phi"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four query heads on two key heads, untied, with four more embeddings than tokens."""
    folder = tmp_path_factory.mktemp("llama")
    made = tiny.tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(made) + 4, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        initializer_range=0.2, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def edited(folder: Path, target: Path, file: str, **changes: Any) -> Path:
    """A copy whose JSON file has other values."""
    shutil.copytree(folder, target)
    (target / file).write_text(json.dumps({**read_object(target / file), **changes}))
    return target


def tensors(folder: Path) -> dict[str, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    return dict(model.state_dict())


@pytest.mark.parametrize("which", ["phi", "llama"])
def test_transformers_reads_the_same_weights_back(
    gguf: Any, which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    folder = request.getfixturevalue(which)
    write_gguf(folder, tmp_path / "x.gguf", "f32", "tiny")
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")
    found, expected = dict(read.state_dict()), tensors(folder)
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


def test_the_rotary_pairs_of_llama_lie_side_by_side(gguf: Any, llama: Path, tmp_path: Path) -> None:
    """llama.cpp rotates rows 2i and 2i + 1 of a head, transformers rows i and i + d/2 (d = 16)."""
    write_gguf(llama, tmp_path / "x.gguf", "f32", "tiny")
    stored = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    query = tensors(llama)["model.layers.1.self_attn.q_proj.weight"].numpy()
    order = [16 * head + i + 8 * half for head in range(4) for i in range(8) for half in (0, 1)]
    np.testing.assert_array_equal(stored["blk.1.attn_q.weight"], query[order])


@pytest.mark.parametrize(
    ("kind", "bound"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 254 + 2**-11)]
)
def test_smaller_types_are_as_near_as_they_can_be(
    gguf: Any, phi: Path, tmp_path: Path, kind: str, bound: float
) -> None:
    """Half a step: of the value for floats; for q8_0 of the block's largest value / 127, which is
    rounded to an f16 itself."""
    write_gguf(phi, tmp_path / "x.gguf", kind, "tiny")
    expected = tensors(phi)
    read = {t.name: t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert read["output_norm.weight"].tensor_type.name == "F32"
    names = {"token_embd.weight": "model.embed_tokens.weight",
             "blk.0.attn_qkv.weight": "model.layers.0.self_attn.qkv_proj.weight"}  # fmt: skip
    for name, source in names.items():
        tensor, weights = read[name], expected[source].numpy()
        assert tensor.tensor_type.name == kind.upper()
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        scale = np.abs(weights)
        if kind == "q8_0":
            scale = scale.reshape(*scale.shape[:-1], -1, 32).max(-1).repeat(32, axis=-1)
        assert (np.abs(found - weights) <= bound * scale + 2**-25).all()
    rows_of_48 = read["blk.0.ffn_down.weight"].tensor_type.name  # no whole blocks of 32
    assert rows_of_48 == ("F16" if kind == "q8_0" else kind.upper())


def test_tokens_and_settings(gguf: Any, llama: Path, phi: Path, tmp_path: Path) -> None:
    write_gguf(phi, tmp_path / "x.gguf", "f32", "phi-3-tiny", SAMPLING)
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    held = {name: field.contents() for name, field in fields.items()}
    made = tiny.tokenizer()
    assert held["tokenizer.ggml.tokens"] == made.convert_ids_to_tokens(range(len(made)))
    assert held["tokenizer.ggml.token_type"] == [3] * 5 + [1] * 256
    assert held["tokenizer.ggml.pre"] == "gpt-2"
    ends = [held[f"tokenizer.ggml.{use}_token_id"] for use in ("eos", "eot", "padding")]
    assert ends == [3, 0, 4]
    assert held["tokenizer.ggml.add_bos_token"] is False
    assert "generation -%}" not in held["tokenizer.chat_template"]
    assert held["general.name"] == "phi 3-tiny"  # llama.cpp has rules for models called phi-3
    assert held["phi3.attention.sliding_window"] == 0
    found = [held[f"general.sampling.{key}"] for key in ("temp", "top_k", "top_p", "min_p")]
    assert found == [pytest.approx(0.7), 0, pytest.approx(0.95), 0]
    assert (held["phi3.context_length"], held["phi3.rope.dimension_count"]) == (256, 16)
    padded = read_tokenizer(llama, len(made) + 4)
    assert padded.tokens[-1] == f"[PAD{len(made) + 3}]"
    assert padded.types[-4:] == (5, 5, 5, 5)
    with pytest.raises(ExportError, match="but the model has 100 embeddings"):
        read_tokenizer(llama, 100)


def test_bos_is_added_where_the_chat_template_has_it(phi: Path, tmp_path: Path) -> None:
    file = "tokenizer_config.json"
    folder = edited(phi, tmp_path / "a", file, bos_token="<|endoftext|>")
    assert read_tokenizer(folder, 261).add_bos is False
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}")
    assert read_tokenizer(folder, 261).add_bos is True
    (folder / "chat_template.jinja").unlink()  # now as the tokenizer does: it adds none
    assert read_tokenizer(folder, 261).add_bos is False


def test_the_same_bytes_twice(gguf: Any, phi: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gguf(phi, tmp_path / name, "q8_0", "tiny")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM is not written here"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope'"),
        ({"sliding_window": 100}, "sliding_window 100"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias True"),
    ],
)
def test_what_llama_cpp_would_run_otherwise_is_refused(
    gguf: Any, phi: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = edited(phi, tmp_path / "model", "config.json", **changes)
    with pytest.raises(ExportError, match=rf"{said}.*convert_hf_to_gguf\.py"):
        write_gguf(folder, tmp_path / "x.gguf", "f32", "tiny")


def test_without_the_package_the_install_line_is_told(
    phi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"pip install 'three-stage\[export\]'"):
        write_gguf(phi, tmp_path / "x.gguf", "f32", "tiny")


# Pre-tokenizers.

WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
SPLIT = pre_tokenizers.Split(Regex(CL100K), behavior="isolated")
REMOVED = pre_tokenizers.Split(Regex(CL100K), behavior="removed", invert=True)


def bpe(*steps: Any, **more: Any) -> dict[str, Any]:
    made = Tokenizer(models.BPE(vocab={"a": 0}, merges=[], **more))
    made.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    held: dict[str, Any] = json.loads(made.to_str())
    return held


@pytest.mark.parametrize(
    ("held", "name"),
    [
        (bpe(WORDS), "gpt-2"),
        (bpe(DIGITS, WORDS), "smollm"),
        (bpe(SPLIT, BYTES), "dbrx"),
        (bpe(REMOVED, BYTES), "dbrx"),
        (bpe(SPLIT, BYTES, ignore_merges=True), "llama-bpe"),
    ],
)
def test_the_name_of_a_pre_tokenizer(held: dict[str, Any], name: str) -> None:
    """That llama.cpp cuts alike is measured by benchmarks/export_llama_cpp.py."""
    assert pre_tokenizer(held, Path("tokenizer.json")) == name


def normalized() -> dict[str, Any]:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.normalizer = WORDS, normalizers.NFC()
    held: dict[str, Any] = json.loads(made.to_str())
    return held


@pytest.mark.parametrize(
    "held",
    [
        bpe(pre_tokenizers.Whitespace()),
        bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        bpe(pre_tokenizers.Digits(individual_digits=False), WORDS),
        bpe(WORDS, DIGITS),
        bpe(pre_tokenizers.Split(Regex(r"\d+"), behavior="isolated"), BYTES),
        bpe(pre_tokenizers.Split(Regex(CL100K), behavior="merged_with_next"), BYTES),
        bpe(SPLIT, WORDS),
        bpe(WORDS, byte_fallback=True),
        normalized(),
        {"model": {"type": "Unigram"}, "pre_tokenizer": None},
    ],
)
def test_an_unknown_pre_tokenizer_is_refused(held: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match=r"convert_hf_to_gguf\.py"):
        pre_tokenizer(held, Path("tokenizer.json"))


def test_added_tokens_that_take_in_blanks_are_refused(phi: Path, tmp_path: Path) -> None:
    added = read_object(phi / "tokenizer.json")["added_tokens"]
    added[1]["rstrip"] = True
    folder = edited(phi, tmp_path / "model", "tokenizer.json", added_tokens=added)
    with pytest.raises(ExportError, match="takes in blanks beside it"):
        read_tokenizer(folder, 261)


# Types of llama.cpp's own program.


def program(folder: Path, text: str) -> Path:
    file = folder / "llama-quantize"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return folder


def test_types_of_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check_type("q8_0")
    with pytest.raises(ExportError, match=r"run elsewhere: llama-quantize .* Q4_K_M"):
        check_type("q4_k_m")
    with pytest.raises(ExportError, match="'int4' is no type of weights; written here: f32"):
        check_type("int4")
    program(tmp_path, "exit 0")
    check_type("q4_k_m")


def test_llama_quantize_is_given_the_whole_file(
    gguf: Any, phi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the program: it writes what it was told."""
    monkeypatch.setenv("PATH", f"{program(tmp_path, 'head -c 4 $1 > $2; echo $3 >> $2')}:/bin")
    write_quantized(phi, tmp_path / "x.gguf", "q4_k_m", "tiny", SAMPLING)
    assert (tmp_path / "x.gguf").read_bytes() == b"GGUFQ4_K_M\n"
    program(tmp_path, "echo 'tensor cols 48' >&2; exit 1")
    with pytest.raises(ExportError, match="llama-quantize ended with 1: tensor cols 48"):
        write_quantized(phi, tmp_path / "x.gguf", "q4_k_m", "tiny", SAMPLING)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama-quantize", "x.gguf"]


# Ollama.


def test_a_modelfile(phi: Path) -> None:
    text = modelfile(phi, "x.gguf", SAMPLING)
    head, template, rest = text.split('"""')
    assert head == "FROM ./x.gguf\nTEMPLATE "
    assert template == go_template("chatml")
    assert rest.splitlines()[1:] == [
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|endoftext|>"',
        "PARAMETER temperature 0.7",
        "PARAMETER top_k 0",
        "PARAMETER top_p 0.95",
        "PARAMETER min_p 0.0",
        "PARAMETER repeat_penalty 1.0",
        "PARAMETER num_predict 140",
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_text(file.read_text().replace("<|im_sep|>", " ")),
        lambda file: file.unlink(),
    ],
)
def test_an_unknown_template_is_refused(
    phi: Path, tmp_path: Path, change: Callable[[Path], Any]
) -> None:
    folder = shutil.copytree(phi, tmp_path / "model")
    change(folder / "chat_template.jinja")
    with pytest.raises(ExportError, match=r"none of those .*\(chatml, .* without --ollama"):
        modelfile(folder, "x.gguf", SAMPLING)


def test_all_of_it_in_one_folder(gguf: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert export(run, tmp_path / "out", ExportConfig(gguf=OWN, ollama=True))
    assert not export(run, tmp_path / "out", ExportConfig(gguf="f32", ollama=True))
    file = "phi-nano-full_dpo-f32.gguf"
    assert (tmp_path / "out" / file).is_file()
    assert (tmp_path / "out" / "Modelfile").read_text().startswith(f"FROM ./{file}\n")
    card = (tmp_path / "out" / "README.md").read_text()
    digests = json.loads((tmp_path / "out" / "export.json").read_text())["files"]
    assert f"SHA-256 of `{file}`: `{digests[file]}`" in card
