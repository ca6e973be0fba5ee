"""A sweep's file made into a checked question; nothing here imports Optuna."""
