"""`python trainer_run.py TASK.json`: QLoRA with transformers.Trainer, PEFT and bitsandbytes."""

import sys

from channel import Channel
from datasets import load_from_disk
from peer import Marks, arguments, finish, load_base, load_tokenizer, lora_config
from peft import get_peft_model, prepare_model_for_kbit_training
from task import Task
from transformers import (
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)


def train(task: Task, channel: Channel) -> None:
    """Train one adapter and tell the bench what came out."""
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


if __name__ == "__main__":
    line = Channel()
    line.mark("imported")
    train(Task.read(sys.argv[1]), line)
