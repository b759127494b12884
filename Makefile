# make demo | test | accept | faults | bench | lint      ARGS are passed on, e.g. make test ARGS="-k prior"
FIND = for p in python3.11 python3 python3.12 python3.13; do \
       $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done
PYTHON ?= $(or $(shell $(FIND)),$(error Python 3.11 or newer is needed; set PYTHON=/path/to/python))
VENV ?= .venv
BIN = $(VENV)/bin

demo: $(VENV)/.app
	$(BIN)/invprior demo $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)
	$(MAKE) --no-print-directory lint

accept: $(VENV)/.test
	$(BIN)/python -m pytest -m slow -s --timeout 3600 $(ARGS)

faults: $(VENV)/.test
	$(BIN)/python -m pytest -m faults -s --timeout 7200 $(ARGS)

bench: $(VENV)/.bench
	$(BIN)/python -m pytest tests/benchmarks -m "" --benchmark-only -s $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

# One stamp per extra: installed again when what it depends on changes.
$(VENV)/.app $(VENV)/.test $(VENV)/.bench: $(VENV)/.%: pyproject.toml constraints.txt
	$(or $(wildcard $(BIN)/python),$(PYTHON)) tools/system-packages
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$*]"
	touch $@

.PHONY: demo test accept faults bench lint
