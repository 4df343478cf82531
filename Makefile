# `make help` lists the targets. Everything runs in an environment of its own, .venv, which `make setup` makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
FAST := -m "not slow"

.DEFAULT_GOAL := help
.PHONY: help setup lint format test test-all demo smoke sanity bench cost throughput notebooks wheel fidelity clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## make the environment (a few minutes, once)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

lint: $(STAMP)  ## style, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP)  ## fast tests
	$(BIN)/python -m pytest $(FAST) --cov --cov-report=term:skip-covered

test-all: $(STAMP)  ## every test: also DDP, wheel, kills, notebooks; two at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile

demo: $(STAMP)  ## data, pre-training, evaluation and a report, in minutes
	$(BIN)/vlp-bench demo

smoke: $(STAMP)  ## the same in seconds, with numbers that mean nothing
	$(BIN)/vlp-bench benchmark plan=smoke

sanity: $(STAMP)  ## does pre-training help? 3 seeds on synthetic data (resumable, about an hour)
	$(BIN)/vlp-bench benchmark plan=sanity
	$(BIN)/python benchmarks/sanity.py

bench: $(STAMP)  ## speed of the data path, beside the naive one
	$(BIN)/python benchmarks/data_path.py

cost: $(STAMP)  ## what a training step costs beside its networks (about 20 minutes)
	$(BIN)/python benchmarks/step_cost.py

throughput: $(STAMP)  ## does training wait for data, and what do two processes cost? (about 10 minutes)
	$(BIN)/python benchmarks/throughput.py

notebooks: $(STAMP)  ## run the notebooks
	$(BIN)/python -m pytest tests/test_notebooks.py

fidelity: $(STAMP)  ## compare all golden files and write docs/fidelity.md
	$(BIN)/python -m pytest tests/golden --fidelity docs/fidelity.md

wheel: $(STAMP)  ## build the wheel
	$(BIN)/python -m build --wheel

clean:  ## remove builds and caches (runs stay)
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
