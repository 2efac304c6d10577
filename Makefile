# What a checkout needs: an environment, the demo, the checks, the tests. `make` lists it.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=

bin = $(VENV)/bin
installed = $(VENV)/.installed
at_least_3_10 = import sys; sys.exit(sys.version_info < (3, 10))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check lint types imports format clean

help: ## list what there is
	@echo "usage: make TARGET [PYTHON=python3.12] [VENV=.venv]"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' Makefile

demo: $(installed) ## train a network on two stage actors, on data that ship with the package
	"$(bin)/raylab" train demo

# Several nodes on one machine want all of it, one test at a time: Ray gives up on late ones.
test: $(installed) ## run the whole suite; a part of it: PYTEST_ARGS="-k mailbox -x"
ifeq ($(strip $(PYTEST_ARGS)),)
	"$(bin)/python" -m pytest -n 2 --dist loadfile -m "not cluster"
	"$(bin)/python" -m pytest -m cluster
else
	"$(bin)/python" -m pytest $(PYTEST_ARGS)
endif

check: lint types imports ## run linter, formatter, types and import rules, changing nothing

lint: $(installed)
	"$(bin)/ruff" check .
	"$(bin)/ruff" format --check .

types: $(installed)
	"$(bin)/mypy"

imports: $(installed)
	"$(bin)/lint-imports"

format: $(installed) ## format the code, and repair what the linter can
	"$(bin)/ruff" check --fix .
	"$(bin)/ruff" format .

clean: ## remove the environment, caches and builds; never runs/
	@# Any folder may be named as VENV: what is no virtual environment stays.
	if test -e "$(VENV)/pyvenv.cfg"; then rm -rf "$(VENV)"; fi
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find raylab actors tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, made again only when what it is made from has changed. An environment that
# works is kept and brought up to date, a broken or too old one is replaced.
$(installed): pyproject.toml constraints.txt
	@"$(PYTHON)" -c "$(at_least_3_10)" 2>/dev/null || { \
	  found="$$("$(PYTHON)" --version 2>&1)" || found="not there"; \
	  echo "error: Python 3.10 or newer is needed, but $(PYTHON) is $$found:" \
	    "name another one, e.g. make PYTHON=python3.12" >&2; \
	  exit 1; }
	@"$(bin)/python" -c "import pip; $(at_least_3_10)" 2>/dev/null || { \
	  echo "making $(VENV); the first installation takes some minutes"; \
	  if test -e "$(VENV)/pyvenv.cfg"; then rm -rf "$(VENV)"; fi; \
	  "$(PYTHON)" -m venv "$(VENV)"; }
	"$(bin)/python" -m pip install --no-input "pip>=22.3"
	"$(bin)/python" -m pip install --no-input -c constraints.txt -e ".[dev]"
	@touch "$@"

# `make -j clean test` must not clean what it tests.
ifneq ($(filter clean,$(MAKECMDGOALS)),)
.NOTPARALLEL:
endif
