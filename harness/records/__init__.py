"""What is known about a run: its record, metrics and provenance on disk; nothing here imports torch."""
