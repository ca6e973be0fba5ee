"""Our `evaluate` metrics, in process and loaded by path without a network."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / "harness" / "evals" / "modules"

PREDICTIONS = ["the cat sat", " Paris\n", "a b c d", "yes"]
REFERENCES = ["the cat sat on the mat", "Paris", "b d", "no"]
# Longest common subsequences 3 of (3, 6), 1 of (1, 1), 2 of (4, 2), 0: F1 = 2 P R / (P + R).
ROUGE_L = [2 * 1 * 0.5 / 1.5, 1.0, 2 * 0.5 * 1 / 1.5, 0.0]

INPUTS = {
    "exact_match": {"predictions": PREDICTIONS, "references": REFERENCES},
    "rouge_l": {"predictions": PREDICTIONS, "references": REFERENCES},
    "choice_accuracy": {"predictions": [0, 3, 2, 1], "references": [0, 3, 1, 1]},
    "token_loss": {"loss_sums": [2.0, 4.0, 3.0], "correct": [1, 0, 2], "tokens": [1, 2, 3]},
}

_BY_PATH = """
import json, socket, sys
def refuse(*args, **kwargs):
    raise OSError("no network in this test")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
import evaluate
inputs = json.loads(sys.argv[2])
results = {
    name: evaluate.load(f"{sys.argv[1]}/{name}.py").compute(**given) for name, given in inputs.items()
}
print(json.dumps(results))
"""


def _python(code: str, *arguments: str, **environment: str) -> str:
    completed = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def _in_process() -> dict[str, dict]:
    from harness.evals.modules.choice_accuracy import ChoiceAccuracy
    from harness.evals.modules.exact_match import ExactMatch
    from harness.evals.modules.rouge_l import RougeL
    from harness.evals.modules.token_loss import TokenLoss

    metrics = {
        "exact_match": ExactMatch,
        "rouge_l": RougeL,
        "choice_accuracy": ChoiceAccuracy,
        "token_loss": TokenLoss,
    }
    return {
        name: metric(keep_in_memory=True).compute(**INPUTS[name])
        for name, metric in metrics.items()
    }


def test_values_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path)
    results = _in_process()
    hit = [0.0, 1.0, 0.0, 0.0]
    error = math.sqrt(sum((x - 0.25) ** 2 for x in hit) / 3 / 4)
    assert results["exact_match"] == {
        "exact_match": 0.25,
        "standard_error": pytest.approx(error),
        "n": 4,
    }
    mean = sum(ROUGE_L) / 4
    error = math.sqrt(sum((x - mean) ** 2 for x in ROUGE_L) / 3 / 4)
    assert results["rouge_l"] == {
        "rouge_l": pytest.approx(mean),
        "standard_error": pytest.approx(error),
        "n": 4,
    }
    assert results["choice_accuracy"] == {"choice_accuracy": 0.75, "standard_error": 0.25, "n": 4}
    loss_error = math.sqrt(3 / 2 * (0.25 + 1 + 2.25)) / 6
    assert results["token_loss"] == {
        "n": 3,
        "loss": 1.5,
        "loss_standard_error": pytest.approx(loss_error),
        "perplexity": pytest.approx(math.exp(1.5)),
        "perplexity_standard_error": pytest.approx(math.exp(1.5) * loss_error),
        "token_accuracy": 0.5,
        # residuals of (1, 0, 2) around 0.5 * (1, 2, 3): 0.5, -1, 0.5
        "token_accuracy_standard_error": pytest.approx(math.sqrt(3 / 2 * 1.5) / 6),
    }


def test_by_path_gives_the_same_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "metrics")
    output = _python(_BY_PATH, str(MODULES), json.dumps(INPUTS), HF_HOME=str(tmp_path))
    assert json.loads(output) == _in_process()


def test_imports_are_paid_for_only_by_what_needs_them():
    heavy = ("torch", "transformers", "evaluate", "datasets", "rouge_score", "wandb")
    code = "import sys, {}; print([name for name in %r if name in sys.modules])" % (heavy,)  # noqa: UP031
    assert _python(code.format("harness.evals.choices, harness.evals.result")).strip() == "[]"
    assert _python(code.format("harness.evals.evaluate")).strip() == "['torch']"
