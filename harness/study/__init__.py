"""Optuna and its storage: which trials a question has, and what they came to."""
