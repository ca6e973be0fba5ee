"""One run on several devices: torchrun's ranks, the first of which leads; the others compute."""
