"""The embedded base model: its language, its pretraining, its fine-tuning tasks.

Importing this package, `corpus` or `tasks` needs nothing but the standard library.
"""
