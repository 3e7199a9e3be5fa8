# Every target makes what it needs: a virtual environment in .venv with the pinned versions.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A 1-4 M parameter model is fastest on few threads; more than the machine has cores is slower for every size.
export OMP_NUM_THREADS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && echo 4 || echo $$n)
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow test-processors check format results lab docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-plain ## forget one story on the embedded lab, with the table and the report (a minute)
	$(BIN)/duet demo

# One process a core, one thread each: the models of the tests are too small for more. A file's tests stay together, so
# that they share what is built for them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(OMP_NUM_THREADS) --dist loadfile

test: $(VENV)/.stamp-test ## the tests: CPU, offline (five minutes on 2 cores)
	$(PYTEST)

test-slow: $(VENV)/.stamp-test ## what takes long and rarely breaks (minutes more)
	$(PYTEST) -m slow

# One machine computes as others do: golden curves on other vector units, 4-bit weights where bitsandbytes takes the
# processor for one with and without AVX512-BF16 (it asks the processor itself; tests/processor answers in its place).
QUANTISED := tests/models/test_quantise.py tests/models/test_quantised.py tests/attacks/test_weights.py
test-processors: $(VENV)/.stamp-test ## what depends on the processor, as other processors compute it
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE $(PYTEST) tests/methods/test_golden.py
	ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 $(PYTEST) tests/methods/test_golden.py
	BNB_AVX512BF16=1 PYTHONPATH=tests/processor $(PYTEST) $(QUANTISED)
	BNB_AVX512BF16=0 PYTHONPATH=tests/processor $(PYTEST) $(QUANTISED)

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
