"""Which of the causal architectures of transformers the engine samples rightly.

    python benchmarks/architectures.py          about ten minutes on one core

Each is made as a tiny random model, from its default configuration with small numbers put in. Rows
of unlike lengths are drawn greedily in one batch and compared with plain forwards of the whole
text. Writes benchmarks/results/architectures.md, which the docs link to.
"""

from __future__ import annotations

import collections
import logging
import multiprocessing
import warnings
from pathlib import Path
from typing import Any

LENGTHS = (3, 9, 20, 33)
TOKENS = 8
MOST_PARAMETERS = 20_000_000
SECONDS = 120
OUT = Path(__file__).parent / "results" / "architectures.md"

SMALL = {
    32: "hidden_size n_embd d_model embed_dim dim word_embed_proj_dim embedding_size lru_width "
    "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size",
    64: "intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim hidden_dim d_ff d_inner "
    "ffn_hidden_size sliding_window attention_window_size",
    2: "num_hidden_layers n_layer num_layers n_layers decoder_layers encoder_layers "
    "num_decoder_layers num_key_value_heads num_kv_heads num_experts_per_tok linear_num_key_heads "
    "linear_num_value_heads moe_k moe_topk eos_token_id",
    4: "num_attention_heads n_head num_heads n_heads decoder_attention_heads "
    "encoder_attention_heads num_local_experts num_experts n_routed_experts moe_num_experts "
    "mamba_n_heads time_step_rank conv_kernel",
    8: "head_dim rotary_dim qk_rope_head_dim qk_nope_head_dim v_head_dim mamba_d_state state_size "
    "ssm_state_size linear_key_head_dim linear_value_head_dim kv_channels d_kv window_size "
    "hidden_size_per_layer_input",
    16: "q_lora_rank kv_lora_rank qk_head_dim mamba_d_head",
    128: "max_position_embeddings n_positions n_ctx max_seq_len",
    99: "vocab_size vocab_size_per_layer_input",
    1: "n_group topk_group first_k_dense_replace num_shared_experts n_shared_experts bos_token_id",
    0: "pad_token_id",
}
SIZES = {name: size for size, names in SMALL.items() for name in names.split()}


def shrunk(config: Any, heads: int) -> Any:
    """A configuration with small numbers, also in those inside it."""
    sizes = SIZES | {"num_key_value_heads": heads}
    for name, size in sizes.items():
        try:
            held = getattr(config, name, "")
            if type(held) is int or (held is None and name in ("head_dim", "num_key_value_heads")):
                setattr(config, name, size)
        except Exception:  # derived from others, or another one for each layer
            continue
    if hasattr(config, "is_decoder") and not getattr(config, "is_encoder_decoder", False):
        config.is_decoder = True
    for inner in ("text_config", "decoder", "llm_config"):
        if hasattr(getattr(config, inner, None), "to_dict"):
            shrunk(getattr(config, inner), heads)
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list) and kinds:
        distinct = list(dict.fromkeys(kinds))
        try:
            config.layer_types = (distinct * 2)[: max(2, len(distinct))]
            config.num_hidden_layers = len(config.layer_types)
        except AttributeError:
            pass
    if getattr(config, "attention_types", None):
        config.attention_types = [[["global", "local"], 1]]
        config.attention_layers, config.num_layers = ["global", "local"], 2
    return config


def tiny_model(name: str, heads: int, rebuilt: bool) -> Any:
    """Raises whatever the library raises, ValueError for a model that stays large."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind = CONFIG_MAPPING[name]
    config = shrunk(kind(), heads)
    if rebuilt:  # so that derived values follow
        given = config.to_dict()
        config = kind(**{k: v for k, v in given.items() if k not in ("model_type",)})
    failures = []
    for attention in ("sdpa", "eager"):
        try:
            with torch.device("meta"):
                model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
            size = sum(p.numel() for p in model.parameters())
            if size > MOST_PARAMETERS:
                raise ValueError(f"too large to be tried out: {size / 1e6:.0f} M parameters")
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
            break
        except Exception as error:  # of a model's own code
            failures.append(error)
    else:
        raise failures[0]
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    return model.float().eval()


def plain(model: Any, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Greedy tokens by forwards of the whole text."""
    import torch

    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(TOKENS):
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(int(logits.argmax()))
    return tuple(ids[len(prompt) :])


def judge(name: str) -> tuple[str, str]:
    """The verdict on one architecture and its reason."""
    import torch

    from pts import EngineError, SamplingConfig, TransformersEngine
    from pts.engines.base import SampleRequest

    class Tokenizer:
        eos_token_id = None

    generator = torch.Generator().manual_seed(3)
    prompts = [tuple(torch.randint(3, 99, (n,), generator=generator).tolist()) for n in LENGTHS]
    why = ""
    for heads, rebuilt in ((2, True), (4, True), (2, False), (4, False)):
        try:
            model = tiny_model(name, heads, rebuilt)
            wanted = [plain(model, prompt) for prompt in prompts]
            break
        except Exception as error:  # of a model's own code
            why = why or f"{type(error).__name__}: {error}"
    else:
        return "not tried", why
    try:
        engine = TransformersEngine(
            model, Tokenizer(), SamplingConfig(temperature=0.0, max_new_tokens=TOKENS),
            stop_ids=[98], policy_digest="tiny",
        )  # fmt: skip
        requests = [SampleRequest(i, p, (), TOKENS, (7,)) for i, p in enumerate(prompts)]
        given = {r.key: rows[0] for r, rows in engine.sample(iter(requests))}
    except EngineError as error:
        return "refused", str(error)
    right = all(given[i] == row[: len(given[i])] for i, row in enumerate(wanted))
    alone = "one row at a time" if engine.max_rows == 1 else ""
    limit = f"up to {engine.max_model_len} tokens here" if engine.max_model_len else ""
    return ("samples" if right else "WRONG"), "; ".join(filter(None, (alone, limit)))


def _judge_quietly(name: str, pipe: Any) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    try:
        pipe.send(judge(name))
    except BaseException as error:
        pipe.send(("FAILED", f"{type(error).__name__}: {error}"))


def main() -> None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    context = multiprocessing.get_context("fork")
    rows = []
    for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        ours, theirs = context.Pipe()
        process = context.Process(target=_judge_quietly, args=(name, theirs))
        process.start()
        said = ours.recv() if ours.poll(SECONDS) else ("not tried", f"more than {SECONDS} s")
        process.kill()
        process.join()
        rows.append((name, *said))
        print(*rows[-1], flush=True)
    counts = collections.Counter(verdict for _, verdict, _ in rows)
    lines = [
        f"Causal architectures of transformers {transformers.__version__} as tiny random models: "
        "rows of 3 to 33 tokens, greedy, in one batch, against plain forwards "
        "(`benchmarks/architectures.py`). "
        + ", ".join(f"{verdict} {count}" for verdict, count in counts.most_common()) + ".",
        "",
        "| model type | engine | why |",
        "|---|---|---|",
    ]  # fmt: skip
    for name, verdict, why in rows:
        reason = " ".join(why.split()).replace("|", "\\|")[:160]
        lines.append(f"| `{name}` | {verdict} | {reason} |")
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
