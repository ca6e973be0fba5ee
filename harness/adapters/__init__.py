"""Adapters: PEFT makes and saves them; the packed forward over many of them is ours."""
