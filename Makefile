# Needs Python 3.11, 3.12 or 3.13 (with venv), git and make. Everything else is installed into .venv, pinned by
# constraints.txt, the first time; afterwards only when pyproject.toml or constraints.txt has changed.
#
#   make test PYTHON=/path/to/python3.13      choose the interpreter
#   make demo ARGS="--flights 20000"          hand arguments on

.DEFAULT_GOAL := help
.PHONY: help demo bench test unit check compiled pytest format coverage docs venv clean blocking

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# .venv is ready when it holds a file of this name, written last. The name says for which place (scripts and links
# in a .venv hold its absolute path) and from which pins, so a moved checkout and a changed pin both miss it.
PLACE := $(shell pwd -P | cksum | cut -d' ' -f1)
PINS := $(shell cat pyproject.toml constraints.txt | cksum | tr ' ' '-')
READY := $(VENV)/ready-$(PLACE)-$(PINS)

# A .venv whose interpreter is gone, or is another one than PYTHON=, is not ready either.
INSIDE := $(shell $(BIN)/python -V 2>/dev/null)
ifeq ($(INSIDE),)
.PHONY: $(READY)
else ifdef PYTHON
ifneq ($(INSIDE),$(shell "$(PYTHON)" -V 2>/dev/null))
.PHONY: $(READY)
endif
endif

CANDIDATES := $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3 python)

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 18

demo: $(READY) ## replay a year of real flights, kill actors on the way, verify the result (ARGS="--all --json FILE")
	@$(BIN)/rayfold demo $(ARGS)

bench: $(READY) ## measure, and write a page with plots (ARGS="all --quick --json FILE --report DIR")
	@$(BIN)/rayfold bench $(if $(ARGS),$(ARGS),all --quick --report bench-report)

test: check pytest ## everything that must pass: make check, then all tests (ARGS="-k name" goes to pytest)

unit: $(READY) ## the tests that start no process and do not sleep, within a minute
	@$(PYTEST) -n 2 -m 'not slow' $(ARGS)

check: $(READY) ## lint, format, types, dead code, and who imports whom, over sources and tests
	@echo "ruff check"; $(BIN)/ruff check --quiet .
	@echo "ruff format"; $(BIN)/ruff format --check --quiet .
	@echo "mypy --strict"; $(BIN)/mypy --no-error-summary
	@echo "copied signatures"; $(BIN)/python tools/copy_signatures.py --check
	@echo "blocking API"; $(BIN)/python tools/generate_blocking.py --check
	@echo "vulture"; $(BIN)/vulture
	@echo "import-linter"; told=$$($(BIN)/lint-imports --no-logo --no-cache 2>&1) || { echo "$$told"; exit 1; }

# Four files at a time on two cores: more than half of its time a test waits, for processes to start or end and for
# deadlines. ARGS="-n 0" has one after the other. The longest files come first (tests/conftest.py), and so all four end
# at the same time. Each actor is a process that imports the project: under PYTHONDONTWRITEBYTECODE it would compile it
# every time.
# What fails beside others, on a machine that is busy with both, is run once more, one test after the other, and with the
# rest of its file: in some, a test goes on where the one before it has stopped. Not after a run that was broken off, or
# in which a file could not be read: most tests have not run then, and nothing would tell.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
FAILED := .pytest_cache/v/cache/lastfailed
only_tests_failed = [ $$status -eq 1 ] && ! grep '": true' $(FAILED) | grep -qv '::'

pytest: $(READY) compiled
	@$(PYTEST) -n 4 $(ARGS) || { \
	  status=$$?; $(only_tests_failed) || exit $$status; \
	  echo 'once more, one after the other, the files in which a test has failed:'; \
	  $(BIN)/python -m pytest $$(sed -n 's/^ *"\([^":]*\)::.*/\1/p' $(FAILED) | sort -u) $(ARGS); }

compiled: $(READY)
	@$(BIN)/python -m compileall -q actors runtime benchmarks rayfold tests examples
	@$(READ_TESTS)

# After the check, which takes one core for half a minute in a new checkout. Meanwhile the other one reads all tests
# once, so that not each of the four workers has to rewrite their assertions: 9 s of CPU each.
ifneq ($(filter test,$(MAKECMDGOALS)),)
MAKEFLAGS += --jobs=2
READ_TESTS := $(BIN)/python -m pytest --collect-only --quiet >/dev/null || true
pytest: check
endif

blocking: $(READY) ## write the blocking API anew, from the asynchronous one, and copy signatures to where they are repeated
	@$(BIN)/python tools/copy_signatures.py
	@$(BIN)/python tools/generate_blocking.py

format: $(READY) ## rewrite the code as ruff would have it
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

coverage: $(READY) ## all tests, with the lines that none of them ran
	@$(BIN)/python -m coverage run -m pytest $(ARGS)
	@$(BIN)/python -m coverage report

# Its packages are not in .venv before they are wanted: nothing else needs them. No --quiet, under which --strict sees
# no warning.
docs: $(READY) ## the documentation as a site, in build/site
	@$(BIN)/python -c 'import mkdocstrings_handlers.python, material' 2>/dev/null || $(PIP) --no-build-isolation --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "the site begins at build/site/index.html"

venv: $(READY) ## only make .venv ready
	@echo "$(VENV) is ready: $$($(BIN)/python -V)"

# An install that finished leaves its ready-file and is brought up to date in place; one that did not is begun anew.
$(READY):
	@if ! ls $(VENV)/ready-$(PLACE)-* >/dev/null 2>&1 || ! $(call runs,$(BIN)/python) || ! $(same_version); then \
	  python=; \
	  for candidate in $(CANDIDATES); do \
	    if $(call runs,"$$candidate"); then python=$$("$$candidate" -c '$(REAL_PATH)'); break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo 'Rayfold needs Python 3.11, 3.12 or 3.13 with its venv module, and none of these is one:' $(CANDIDATES) >&2; \
	    echo 'Name one with PYTHON=/path/to/python3, or install it (on Debian and Ubuntu: python3 and python3-venv)' >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$$python" -V) ($$python)"; \
	  rm -rf $(VENV) && "$$python" -m venv $(VENV) || exit 1; \
	fi; \
	rm -f $(VENV)/ready-*
	@echo "installing the pinned packages into $(VENV) (the first time this takes a minute or more)"
	@$(PIP) hatchling setuptools
	@$(PIP) --no-build-isolation --editable '.[demo,dev,bench]'
	@touch $@

PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
runs = $(1) -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
# Of the interpreter itself: where a .venv is active, `python3` is a link in what is about to be removed.
REAL_PATH = import os, sys; print(os.path.realpath(sys.executable))
same_version = $(if $(PYTHON),[ "$$($(BIN)/python -V)" = "$$("$(PYTHON)" -V 2>/dev/null)" ],true)

clean: ## remove what was built or cached; stores and .venv stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find actors runtime benchmarks tests examples rayfold -name __pycache__ -type d -prune -exec rm -rf {} +
