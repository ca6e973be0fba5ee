"""What an adapter becomes when it leaves: a PEFT folder, merged weights, NF4, GGUF; each with its loss."""
