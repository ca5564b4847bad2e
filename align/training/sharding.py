"""How the weights of a policy lie on the devices that train it: whole on each, or in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from align.settings import LaunchConfig
from align.training.ranks import world

TIMEOUT_S = 86_400
"""How long processes wait for one that measures a checkpoint or saves; one that died is noticed by
the process that started them."""

ZERO3: dict[str, Any] = {
    "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
    "bf16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "gradient_accumulation_steps": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
}
"""DeepSpeed's ZeRO-3; transformers fills in `auto` from the training arguments."""


def sharding(launch: LaunchConfig) -> dict[str, Any]:
    """Training arguments of a launch."""
    if world() == 1:
        return {}
    shared = {"ddp_timeout": TIMEOUT_S}
    if launch.strategy == "ddp":
        return {**shared, "ddp_find_unused_parameters": False}
    if launch.strategy == "deepspeed":
        given = launch.deepspeed_config
        return {**shared, "deepspeed": json.loads(Path(given).read_text()) if given else ZERO3}
    return {**shared, "fsdp": True, "fsdp_config": {"version": 2}}


def let_cpus_shard(arguments: TrainingArguments) -> None:
    """accelerate takes CPUs for plain data parallelism, whatever it is asked; tell it otherwise,
    before a trainer asks it and after the arguments have (they forget what it was told).

    FSDP2 itself works over gloo, which is how sharding is tested without a GPU.
    """
    if not arguments.fsdp or not arguments.use_cpu:
        return
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import (
        DistributedType,
        FullyShardedDataParallelPlugin,
        TorchDynamoPlugin,
    )

    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    state: Any = AcceleratorState(
        cpu=True, fsdp_plugin=plugin, dynamo_plugin=TorchDynamoPlugin(), _from_accelerator=True
    )
    PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = plugin
