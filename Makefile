# make check: does it hold on this machine? make demo: the whole pipeline on synthesized speech. make test: every
# test. make mutate MODULES=train/judge/validate.py: which small mistakes in a module no test notices (minutes).
# Each makes the environment from the pinned versions first, if it is missing or out of date.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODULES ?= train/judge/validate.py vox/checkpoint/files.py
COUNT ?= 10
SEED ?= 0
INSTALLED := $(VENV)/.installed

.PHONY: check demo test lint bench mutate clean

check: $(INSTALLED)
	$(BIN)/vox check

demo: $(INSTALLED)
	$(BIN)/vox demo --out runs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks

# TESTS: test files or ids; without, those that import the module. SEED: another draws other mutations.
mutate: $(INSTALLED)
	$(BIN)/python -m tests.mutate $(MODULES) --count $(COUNT) --seed $(SEED) $(if $(TESTS),--tests $(TESTS))

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --no-deps: requirements.txt is the whole set, and `pip check` says if it is not.
# --no-build-isolation: builds with the pinned setuptools, without the network.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || { \
		echo "Vox needs Python 3.11.4 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name another: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	touch $@
