"""`harness doctor`, against what torch, the installed packages and a real base say."""

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch

from harness.cli.main import dispatch
from harness.config.compose import compose_run
from harness.config.devices import visible_cuda_devices
from harness.request import make_request
from harness.training.launch import open_base

pytestmark = pytest.mark.skipif(visible_cuda_devices() > 0, reason="says what a processor lacks")


def test_what_it_says_is_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"paths.out={tmp_path}"]
    assert dispatch(["doctor", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["peft"] == metadata.version("peft")
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert (found["cuda"]["why_none"] is None) == torch.cuda.is_available()
    backends = {line["quant"]: line for line in found["backends"]}
    for name, dtype in (("nf4_dq", "float32"), ("none", "bfloat16")):
        config = compose_run([*words, f"quant={name}", f"quant.compute_dtype={dtype}"])
        request = make_request(config)
        shared = open_base(config, request.source, request.fingerprint)
        if dtype == "float32":
            assert backends[name]["backend"] == shared.backend.name.value
            assert set(backends[name]["not"]) == {"cuda"}
        else:
            assert dispatch(["doctor", *words, f"quant.compute_dtype={dtype}", "--json"]) == 0
            told = json.loads(capsys.readouterr().out)["backends"]
            refused = [line["quant"] for line in told if line["backend"].startswith("refused")]
            assert refused == ["as_stored"]  # the embedded model came in no storage to take over
            told = [line for line in told if line["quant"] not in refused]
            assert (
                {line["backend"] for line in told} == {shared.backend.name.value} == {"reference"}
            )
            assert "float32" in told[0]["not"]["cpu"]
    kept = json.loads(Path(found["rates"]["kept"]).read_text())["rates"]
    assert found["rates"]["copy_bytes_per_second"] <= kept["copy"]
    assert any("paged" in line for line in found["lacks"])


def test_a_request_that_no_run_could_make_is_refused(tmp_path: Path) -> None:
    assert dispatch(["doctor", "resources.devic=cpu"]) == 2
    assert dispatch(["doctor", "--jsn"]) == 2
