"""What the fork server loads before it forks: everything that training imports."""

import importlib

from harness.base.quick_imports import quiet_libraries

quiet_libraries()  # before transformers and peft look for bitsandbytes
for _name in ("accelerate", "peft", "transformers.models.llama.modeling_llama"):
    importlib.import_module(_name)
for _name in ("harness.training.launch", "harness.training.session"):
    importlib.import_module(_name)
