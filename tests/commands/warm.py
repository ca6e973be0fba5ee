"""What the fork server loads before it forks: everything that training imports."""

import importlib

from harness.base.library_faults import cure_bitsandbytes

cure_bitsandbytes()  # before transformers and peft look for bitsandbytes
for _name in ("accelerate", "peft", "transformers.models.llama.modeling_llama"):
    importlib.import_module(_name)
for _name in ("harness.training.launch", "harness.training.session"):
    importlib.import_module(_name)
