"""`transformers.Trainer` on given batches, as its documentation shows it: what benches compare with."""

import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from harness.data.rows import NO_LOSS

if TYPE_CHECKING:
    from transformers import TrainerCallback


def train(
    model: Any,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    callback: "TrainerCallback",
    *,
    learning_rate: float,
    max_grad_norm: float,
    use_cpu: bool,
) -> float:
    """Train on each batch once, in order, at a constant rate; returns the mean loss of the steps.

    Args:
        batches: input ids and targets, both [B, T], of one size; targets stand one place before their token.
        callback: of the Trainer's; hears when steps begin and end.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    no_loss = torch.tensor([NO_LOSS])
    examples = [
        {"input_ids": row, "labels": torch.cat([no_loss, targets[:-1]])}  # it shifts by itself
        for input_ids_BT, targets_BT in batches
        for row, targets in zip(input_ids_BT, targets_BT, strict=True)
    ]
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=len(batches[0][0]),
            max_steps=len(batches),
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=max_grad_norm,
            optim="adamw_torch_fused",
            train_sampling_strategy="sequential",
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=use_cpu,
            dataloader_pin_memory=not use_cpu,
            remove_unused_columns=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=cast(Any, examples),
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer.train().training_loss
