"""A question of one's own, asked of rows of one's own: which layers, at equal parameters?

python examples/own_question.py [override…]
"""

import json
import sys
from pathlib import Path

import harness

words = ["apple", "bird", "boat", "cake", "door", "fish", "key", "lamp", "moon", "nest"]
rows = [{"prompt": f"{a} or {b} ?", "response": max(a, b)} for a in words for b in words if a != b]
Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

question = {
    "name": "which_layers",
    "question": "Which layers should an adapter of 116,000 parameters be on?",
    "expect": "All of them (QLoRA, Figure 2).",
    "base": ["data=pairs", "data.path=rows.jsonl", "data.validation_rows=15", "data.test_rows=15"],
    "space": {
        "layers": {"cases": {"qv": ["lora=qv", "lora.rank=43"], "all": ["lora.rank=8"]}},
        "optim.lr": [3e-3, 1e-2],  # never compare at one learning rate only
    },
    "search": {"method": "grid"},  # or tpe, with trials and a pruner
    "objective": "eval/loss",
    "confirm": {"top": 2, "seeds": [10, 11], "split": "test"},
}
overrides = ["data.max_length=32", "optim.steps=30", *sys.argv[1:]]
result = harness.sweep(question, overrides)  # the same call goes on where it was stopped
print(result.trials().to_string())  # what the search saw
print(result.confirmation().to_string())  # the result: fresh seeds, test split
print(result.report())
