# Every target makes what it needs: a virtual environment in .venv with the pinned versions.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A 1-4 M parameter model is fastest on few threads; more than the machine has cores is slower for every size.
export OMP_NUM_THREADS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && echo 4 || echo $$n)
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test check format results lab docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-plain ## forget one story on the embedded lab, with the table and the report (a minute)
	$(BIN)/duet demo

test: $(VENV)/.stamp-test ## the tests: CPU, offline
	$(BIN)/python -m pytest

check: $(VENV)/.stamp-dev ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(VENV)/.stamp-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.stamp-plain ## regenerate docs/cli.md, methods.md and attacks.md
	$(BIN)/python -m duet_unlearn.cli.docs docs

results: $(VENV)/.stamp-test ## every number of the README
	$(BIN)/python benchmarks/results.py

lab: $(VENV)/.stamp-plain ## rebuild the lab's models (90 minutes on 2 cores)
	$(BIN)/duet lab build

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-plain: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.stamp-test: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.stamp-plain

$(VENV)/.stamp-dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.stamp-test $(VENV)/.stamp-plain
