"""Evaluation: held-out loss, generated answers and multiple choice, each with its standard error and n.

`evaluate.evaluate_model` is the entry; `choices.check_choices` judges the request before a model is loaded.
"""
