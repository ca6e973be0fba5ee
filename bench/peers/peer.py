"""What the two peers' scripts share: the base, the adapter, the arguments. Runs in the peers' environment.

As the libraries' documentation shows it, with these exceptions, each of which helps the peers or makes the
work the same: rows come tokenized and ordered, nothing is saved but the adapter, no progress bar, no tracker,
no gradient checkpointing, float32. `cure_bitsandbytes` is no part of them: without it the CPU path of
bitsandbytes ruins gradients after an evaluation and mis-decodes layers whose inputs are no whole number of
blocks, and the losses would be void.
"""

import os
from typing import Any

import torch
from channel import Channel
from cures import cure_bitsandbytes
from peft import LoraConfig
from task import Task
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    TrainerCallback,
)

LOGGING_STEPS = 10
"""TRL's default; the Trainer's, 500, would leave no curve to compare."""


class Marks(TrainerCallback):
    """Tells the bench of every step."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step."""
        self._channel.step_done(state.global_step)


def load_base(task: Task) -> Any:
    """Return the base in NF4 with double quantization, computing in float32."""
    cure_bitsandbytes()
    return AutoModelForCausalLM.from_pretrained(
        task.model,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    )


def load_tokenizer(task: Task) -> Any:
    """Return the tokenizer, which only pads: batches to their longest row, at the right."""
    tokenizer = AutoTokenizer.from_pretrained(task.model, padding_side="right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def lora_config(task: Task) -> LoraConfig:
    """Return the adapter."""
    return LoraConfig(
        r=task.rank,
        lora_alpha=task.alpha,  # pyright: ignore[reportArgumentType]  PEFT takes floats
        target_modules=task.target_modules,
        task_type="CAUSAL_LM",
    )


def arguments(task: Task) -> dict[str, Any]:
    """Return what TrainingArguments and SFTConfig are given alike."""
    return {
        "output_dir": task.output,
        "seed": task.seed,
        "max_steps": task.steps,
        "per_device_train_batch_size": task.batch_size,
        "per_device_eval_batch_size": task.eval_batch_size,
        "train_sampling_strategy": "sequential",  # the rows lie in our order
        "optim": "adamw_torch_fused",
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "linear",
        "adam_beta1": task.beta1,
        "adam_beta2": task.beta2,
        "adam_epsilon": task.epsilon,
        "weight_decay": task.weight_decay,
        "max_grad_norm": task.max_grad_norm,
        "gradient_checkpointing": False,
        "bf16": False,
        "logging_steps": LOGGING_STEPS,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
    }


def finish(task: Task, channel: Channel, trainer: Any) -> None:
    """Evaluate, save the adapter, and tell the bench what came out."""
    channel.mark("trained")
    evaluated = trainer.evaluate()
    channel.mark("evaluated")
    trainer.save_model(os.path.join(task.output, "adapter"))
    curve = {log["step"]: log["loss"] for log in trainer.state.log_history if "loss" in log}
    channel.mark("result", curve=curve, eval_loss=evaluated["eval_loss"])
