"""Our metrics as modules of Hugging Face `evaluate`; nothing is fetched.

Each file works in process (`ExactMatch().compute(...)`) and by path (`evaluate.load("…/exact_match.py")`).
For the second, `evaluate` copies the file and reads its imports line by line: each stands alone on its
line, none is relative, and the file's only subclass of `evaluate.Metric` is the metric.
"""
