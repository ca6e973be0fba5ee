"""`python peer.py trainer|trl TASK.json`: QLoRA with PEFT, bitsandbytes and a library's trainer.

Runs in the peers' environment. As the libraries' documentation shows it, with these exceptions, each of which
helps the peers or makes the work the same: rows come tokenized and ordered, nothing is saved but the adapter,
no progress bar, no tracker, no gradient checkpointing, float32. `cure_bitsandbytes` is no part of them:
without it the CPU path of bitsandbytes ruins gradients after an evaluation and mis-decodes layers whose
inputs are no whole number of blocks, and the losses would be void.
"""

import os
import sys
from typing import Any

import torch
from channel import Channel, Task
from cures import cure_bitsandbytes
from datasets import load_from_disk
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
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


def train_by_trainer(task: Task, channel: Channel) -> None:
    """Train one adapter with transformers.Trainer and tell the bench what came out."""
    channel.mark("imported")
    base = prepare_model_for_kbit_training(load_base(task), use_gradient_checkpointing=False)
    set_seed(task.seed)
    model = get_peft_model(base, lora_config(task))
    channel.mark("loaded")
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments(task)),
        train_dataset=load_from_disk(task.train_rows),  # pyright: ignore[reportArgumentType]
        eval_dataset=load_from_disk(task.validation_rows),  # pyright: ignore[reportArgumentType]
        data_collator=DataCollatorForSeq2Seq(load_tokenizer(task)),
        callbacks=[Marks(channel)],
    )
    trainer.train()
    finish(task, channel, trainer)


def train_by_trl(task: Task, channel: Channel) -> None:
    """Train one adapter with TRL's SFTTrainer and tell the bench what came out."""
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    channel.mark("imported")
    base = load_base(task)
    set_seed(task.seed)
    model = get_peft_model(base, lora_config(task))
    adapter = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    channel.mark("loaded")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **arguments(task),
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},  # the rows are tokens with labels
        ),
        train_dataset=load_from_disk(task.train_rows),
        eval_dataset=load_from_disk(task.validation_rows),
        processing_class=load_tokenizer(task),
        callbacks=[Marks(channel)],
    )
    # SFTTrainer has rounded the adapter of a quantized base to bfloat16; all arms train it in float32.
    for name, parameter in model.named_parameters():
        if name in adapter:
            parameter.data = adapter[name]
    del adapter
    trainer.train()
    finish(task, channel, trainer)


if __name__ == "__main__":
    train = {"trainer": train_by_trainer, "trl": train_by_trl}[sys.argv[1]]
    train(Task.read(sys.argv[2]), Channel())
