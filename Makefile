# Everything from a fresh machine with Python >= 3.11, git and make: each target installs what it needs first.
PYTHON ?= python3
export PYTHONDONTWRITEBYTECODE := # what is compiled once is not compiled again by each process of the suite
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-triton faults test-gpu test-browser test-data mutants check format bench bench-parts bench-gpu papers picture clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed  ## .venv with the pinned versions

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.installed  ## a sweep on the embedded base, confirmed on fresh seeds, ending in a report
	$(BIN)/harness sweep demo
	$(BIN)/harness report demo

# A file stays with one process, which shares what it builds; what takes long comes first (tests/conftest.py).
# Three on two cores: many tests wait for servers, signals and Slurm.
WORKERS ?= 3
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: .venv/.installed  ## the laptop suite: no network, no GPU; WORKERS=6 for more cores
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-slow: .venv/.installed  ## what takes longer than the laptop suite allows
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m slow

faults: .venv/.installed  ## kills, full disks, damaged files, hostile input: 15 minutes, a table; KILLS=100 TIMES=10 for more
	FAULTS_KILLS=$(or $(KILLS),6) FAULTS_TIMES=$(or $(TIMES),1) FAULTS_TABLE=docs/reliability.md $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'faults or not faults' tests/faults

test-gpu: .venv/.installed  ## what needs a CUDA device
	$(BIN)/python -m pytest -m gpu

.triton/.installed: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .triton triton==3.9.0
	@touch $@

test-triton: .triton/.installed  ## the GPU's kernels in Triton's interpreter, and compiled; Triton (640 MB) goes to .triton/
	PYTHONPATH=.triton TRITON_INTERPRET=1 $(BIN)/python -m pytest -m triton

test-browser: .venv/.installed  ## the live page in a headless Chromium
	$(BIN)/python -m pytest -m browser

TEST_DATA ?= ../shared/data

test-data: .venv/.installed  ## published data and models in TEST_DATA=DIRECTORY, which the suite does not need
	TEST_DATA=$(TEST_DATA) $(BIN)/python -m pytest -m data -rs

mutants: .venv/.installed  ## small changes to the code, and which of them the tests notice; SAMPLE=0 for all
	$(BIN)/python -m tests.mutants --sample $(or $(SAMPLE),200)

check: .venv/.installed  ## ruff and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: .venv/.installed  ## let ruff write
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

BENCH_MODEL := $(if $(MODEL),--model $(MODEL) $(TRAIN) $(VALIDATION))

bench: .venv/.installed  ## side by side with the Trainer, TRL and shell loops: 20 minutes on two idle cores
	$(BIN)/python -m bench.all $(BENCH_MODEL)

bench-gpu: .venv/.installed  ## captured steps of random Llamas against eager ones, a plain loop and the Trainer
	$(BIN)/python -m bench.gpu_captured

bench-parts: .venv/.installed  ## steps, cohorts, sweeps, driver and plans, each against itself
	$(BIN)/python -m bench.step
	$(BIN)/python -m bench.cohort
	$(BIN)/python -m bench.sweep
	$(BIN)/python -m bench.driver
	$(BIN)/python -m bench.plan

papers: .venv/.installed  ## docs/papers: every paper of sweeps/papers asked; SCALE=smollm2 for a GPU, 60 minutes on two idle cores
	$(BIN)/python -m bench.papers --scale $(or $(SCALE),embedded) $(NAMES)

PAGE := $(CURDIR)/out/sweeps/demo/report/index.html
CHROMIUM ?= chromium

picture: demo  ## docs/images/report.png: the demo's page as headless Chromium draws it
	$(CHROMIUM) --headless --no-sandbox --hide-scrollbars --force-device-scale-factor=0.8 \
	  --window-size=1240,1360 --screenshot=docs/images/report.png "file://$(PAGE)"
	$(BIN)/python -c "from PIL import Image; \
	  Image.open('docs/images/report.png').convert('RGB').quantize(256, 1).save('docs/images/report.png', optimize=True)"

clean:  ## remove the environment and build products, keep out/
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
