"""One adapter: train it, read its record, and load it with PEFT as any other adapter.

python examples/one_run.py [override…]
"""

import sys
from pathlib import Path

import harness
from harness.records.metrics import format_value

config = harness.compose(["quant=nf4_dq", "lora.rank=8", "optim.steps=60", *sys.argv[1:]])
record = harness.run(config)  # answers at once if this run has been trained before
print(f"{record.run_id}: {record.status.value}")
for name, after in record.evals["after"].items():
    before = record.evals["before"][name]
    print(f"{name:20} {before.value:9.4f} -> {after.value:7.4f} ± {after.standard_error:.4f}")
print("peak memory", format_value("memory/peak_bytes", record.metrics["memory/peak_bytes"]))

from peft import PeftModel  # noqa: E402  (here: the harness cures bitsandbytes before others load it)
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

base = Path(harness.__file__).parent / "embedded" / "model"  # what model=embedded stands for
adapter = Path(config.paths.out) / "runs" / record.run_id / "adapter"
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
tokenizer = AutoTokenizer.from_pretrained(base)
prompt = tokenizer("Zib the list: dog, cake, moon\n", return_tensors="pt")
answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0]
print(tokenizer.decode(answer, skip_special_tokens=True))  # backwards, and how many there are
