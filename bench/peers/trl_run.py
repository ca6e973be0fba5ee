"""`python trl_run.py TASK.json`: QLoRA with TRL's SFTTrainer."""

import sys

from channel import Channel
from datasets import load_from_disk
from peer import Marks, arguments, finish, load_base, load_tokenizer, lora_config
from peft import get_peft_model
from task import Task
from transformers import set_seed
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]


def train(task: Task, channel: Channel) -> None:
    """Train one adapter and tell the bench what came out."""
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
    line = Channel()
    line.mark("imported")
    train(Task.read(sys.argv[1]), line)
