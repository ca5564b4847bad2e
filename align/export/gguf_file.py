"""A policy as one GGUF file for llama.cpp, Ollama and what else is built on them.

    write_gguf(folder, Path("model.gguf"), "f32", "phi-nano")

Tensors are written one by one, in the order of their names, so memory holds one of them. Which
architectures are known is `ARCHITECTURES`; for all others there is llama.cpp's own converter. The
package `gguf` writes the format and knows the tensors' names there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.errors import ExportError
from align.export.gguf_tokenizer import CONVERTER, GGUFTokenizer, read_tokenizer
from align.export.model_folder import read_object
from pts.errors import MissingExtra

ARCHITECTURES = {"LlamaForCausalLM": "LLAMA", "Phi3ForCausalLM": "PHI3"}
"""Class of a config.json, and the architecture's name in the package gguf."""
TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
"""Types of weights that are written here, and their names as a file's type."""
OF_DTYPE = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_BLOCK = 32
"""Weights in a block of q8_0."""


def own_type(folder: Path) -> str:
    """The type that keeps the weights of a model as they are."""
    held = read_object(folder / "config.json")
    return OF_DTYPE.get(str(held.get("dtype", held.get("torch_dtype"))), "f32")


def write_gguf(
    folder: Path, file: Path, kind: str, name: str, sampling: Mapping[str, Any] | None = None
) -> None:
    """Write a model's folder as a GGUF file.

    Args:
        kind: one of `TYPES`. Vectors (norms) stay f32, and so does, as f16, a matrix whose rows
            are no whole blocks of q8_0.
        sampling: a recipe's `sampling`, which llama.cpp's programs then take for their defaults.

    Raises:
        MissingExtra: the package gguf is not installed.
        ExportError: the architecture, its positions or its tokenizer are none that llama.cpp would
            run as transformers does.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtra("gguf", "export") from None
    config = read_object(folder / "config.json")
    arch = _architecture(folder, config)
    tensors = sorted(_tensors(folder, config))
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], config["num_hidden_layers"])
    rows = next(t.get_shape()[0] for n, t in tensors if n == "model.embed_tokens.weight")
    writer: Any = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[arch]])
    try:
        _write_config(writer, config, arch, _named(name))
        writer.add_file_type(gguf.LlamaFileType[TYPES[kind]])
        if kind == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _write_sampling(writer, sampling or {})
        _write_tokenizer(writer, read_tokenizer(folder, rows))
        kinds = {}
        for source, tensor in tensors:
            target = table.get_name(source, try_suffixes=(".weight",))
            if target is None:
                raise ExportError(f"{folder}: llama.cpp has no tensor {source!r}; {CONVERTER}")
            shape = tuple(tensor.get_shape())
            kinds[source] = of = gguf.GGMLQuantizationType[_kind(kind, shape).upper()]
            size = int(np.prod(gguf.quant_shape_to_byte_shape(shape, of), dtype=np.int64))
            writer.add_tensor_info(target, shape, np.dtype(np.float32), size, raw_dtype=of)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for source, tensor in tensors:
            weights = _turned(source, _floats(tensor), config, arch)
            writer.write_tensor_data(_bytes(gguf.quants.quantize(weights, kinds[source])))
    finally:
        writer.close()


def _architecture(folder: Path, config: Mapping[str, Any]) -> str:
    """Name of the architecture; raises ExportError for what llama.cpp would run otherwise."""
    place, named = folder / "config.json", (config.get("architectures") or ["none"])[0]
    if named not in ARCHITECTURES:
        known = " and ".join(ARCHITECTURES)
        raise ExportError(f"{place}: {named} is not written here (only {known}); {CONVERTER}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    window = config.get("sliding_window")
    strange = {
        "rope_type": rope.get("rope_type", rope.get("type", "default")) != "default"
        and rope.get("rope_type", rope.get("type")),
        "sliding_window": window is not None
        and window < config["max_position_embeddings"]
        and window,
        "hidden_act": config.get("hidden_act", "silu") != "silu" and config.get("hidden_act"),
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        "quantization_config": bool(config.get("quantization_config")),
    }
    for key, value in strange.items():
        if value:
            raise ExportError(f"{place}: {key} {value!r} is not written here; {CONVERTER}")
    return ARCHITECTURES[named]


def _named(name: str) -> str:
    """llama.cpp lets special tokens of a model called phi-3 swallow the blanks after them."""
    return name.replace("phi-3", "phi 3").replace("phi3", "phi 3")


def _write_config(writer: Any, config: Mapping[str, Any], arch: str, name: str) -> None:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    rope = config.get("rope_parameters") or {}
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    theta = rope.get("rope_theta", config.get("rope_theta")) or 10_000.0
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(int(head * share))
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    if head * heads != hidden:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if arch == "PHI3":
        original = config.get("original_max_position_embeddings")
        writer.add_rope_scaling_orig_ctx_len(original or config["max_position_embeddings"])
        writer.add_sliding_window(0)  # that is how llama.cpp tells phi-4 from Phi-3


def _write_sampling(writer: Any, sampling: Mapping[str, Any]) -> None:
    if sampling:
        writer.add_sampling_temp(sampling["temperature"])
        writer.add_sampling_top_k(sampling["top_k"])
        writer.add_sampling_top_p(sampling["top_p"])
        writer.add_sampling_min_p(sampling["min_p"])


def _write_tokenizer(writer: Any, tokenizer: GGUFTokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(list(tokenizer.tokens))
    writer.add_token_types(list(tokenizer.types))
    writer.add_token_merges(list(tokenizer.merges))
    ends = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    if len(tokenizer.stops) > len(ends):
        raise ExportError(
            f"generation_config.json: {len(tokenizer.stops)} stop ids, of which a GGUF file can "
            f"name {len(ends)}; take out those that the model never writes"
        )
    for add, token in zip(ends, tokenizer.stops, strict=False):
        add(token)
    for use, token in tokenizer.special.items():
        getattr(writer, f"add_{use}_token_id")(token)
    writer.add_add_bos_token(tokenizer.add_bos)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _tensors(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and slices of a folder's safetensors, none of them loaded; what is tied, once."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        file: Any = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118  (it is no mapping)
            if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                continue
            yield name, file.get_slice(name)


def _kind(kind: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return "f32"
    return "f16" if kind == "q8_0" and shape[-1] % _BLOCK else kind


def _floats(tensor: Any) -> NDArray[np.float32]:
    found: NDArray[np.float32] = tensor[:].float().numpy()
    return found


def _turned(
    name: str, weights: NDArray[np.float32], config: Mapping[str, Any], arch: str
) -> NDArray[np.float32]:
    """Llama's queries and keys with the two halves of a head's rotary pairs put side by side.

    transformers rotates coordinate i with i + d/2, llama.cpp's Llama i with i + 1; its Phi-3 does
    as transformers.
    """
    if arch != "LLAMA" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weights
    heads = config["num_attention_heads"]
    if name.endswith("k_proj.weight"):
        heads = config.get("num_key_value_heads") or heads
    split = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(weights.shape))


def _bytes(data: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(data).view(np.uint8)
