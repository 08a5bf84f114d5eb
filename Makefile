# Each target sets up the virtual environment that it needs; `make demo` and `make test` work on a fresh machine that has
# Python 3.11 or newer and make.
#
#   PYTHON       the Python that .venv is made with (default: python3)
#   PYTEST_ARGS  more arguments for pytest, for instance PYTEST_ARGS="-k softmax -n 0"
#   BENCH_ARGS   arguments for the benchmarks, for instance BENCH_ARGS=--quick

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
VENV_NEWEST := .venv-newest
PIP_INSTALL := -m pip install -qq --disable-pip-version-check --retries 10 --timeout 60

# The lowest supported jax, read from the dependencies in pyproject.toml.
JAX_MIN := $(shell sed -n 's/^ *"jax>=\([0-9.]*\)".*/\1/p' pyproject.toml)

# The newest Python for `make test-newest`: on PATH, or else among the versions of pyenv.
NEWEST_PYTHON = $(shell \
	for version in 3.13 3.12; do \
		for python in "python$$version" "$$HOME"/.pyenv/versions/$$version*/bin/python$$version; do \
			if "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
				command -v "$$python"; exit 0; \
			fi; \
		done; \
	done)

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.stamp  ## train a classifier of handwritten digits (examples/digits.py)
	$(VENV)/bin/python examples/digits.py

# Tests of how things are put together, rather than of their last digit, are mostly the compiler's time: there it is told
# to hurry. All others run what users run; on the newest jax, after the passes that decide what is fused and what is
# rounded, LLVM hurries there, too. No test chosen by PYTEST_ARGS in one of the two (5) is no failure.
# $(call pytest,ENVIRONMENT,FLAGS,FLAGS OF HURRIED TESTS): jax 0.12 no longer knows the flag that 0.10 has.
# Two processes of pytest use two cores: one thread each to compile.
ONE_THREAD := --xla_cpu_parallel_codegen_split_count=1
HURRIED := jaxsoftmax/calibration tests/calibration tests/conformance tests/integration \
	tests/test_examples.py tests/test_linear.py tests/test_sharded_language_model.py tests/test_sharding.py
define pytest
XLA_FLAGS="$(ONE_THREAD) $(2)" $(1)/bin/python -m pytest $(addprefix --ignore=,$(HURRIED)) $(PYTEST_ARGS) || [ $$? -eq 5 ]
JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS="$(ONE_THREAD) $(3)" $(1)/bin/python -m pytest $(HURRIED) $(PYTEST_ARGS) || [ $$? -eq 5 ]
endef

.PHONY: test
test: lint types $(VENV)/.stamp  ## lint, types, doctests, tests and examples, on the lowest supported jax
	$(call pytest,$(VENV),,--xla_cpu_use_fusion_emitters=false)

.PHONY: test-newest
test-newest: $(VENV_NEWEST)/.stamp  ## doctests, tests and examples on the newest jax, with Python 3.13 or 3.12
	$(call pytest,$(VENV_NEWEST),--xla_backend_optimization_level=0)

.PHONY: newest-python
newest-python:
	@python="$(NEWEST_PYTHON)"; \
	if [ -z "$$python" ]; then \
		echo "no Python 3.13 or 3.12 found, neither on PATH nor under ~/.pyenv/versions" >&2; \
		exit 1; \
	fi; \
	echo "$$python"

.PHONY: bench
bench: $(VENV)/.stamp  ## measure speed, memory and accuracy beside other libraries (benchmarks/)
	$(VENV)/bin/python -m benchmarks $(BENCH_ARGS)

.PHONY: lint
lint: $(VENV)/.stamp  ## check style and formatting with ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

.PHONY: types
types: $(VENV)/.stamp  ## check types with mypy
	$(VENV)/bin/mypy

.PHONY: format
format: $(VENV)/.stamp  ## sort imports, apply the fixes that ruff has, format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

.PHONY: clean
clean:  ## remove the environments, caches and everything that was built
	rm -rf $(VENV) $(VENV_NEWEST) .jax_cache .mypy_cache .pytest_cache .ruff_cache build dist results *.egg-info
	find jaxsoftmax tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "jaxsoftmax needs Python 3.11 or newer; choose one with PYTHON=..." >&2; exit 1; }
	@echo "setting up $(VENV) with jax $(JAX_MIN), the lowest that is supported"
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python $(PIP_INSTALL) --upgrade pip
	@$(VENV)/bin/python $(PIP_INSTALL) --editable '.[test]' jax==$(JAX_MIN) jaxlib==$(JAX_MIN)
	@touch $@

$(VENV_NEWEST)/.stamp: pyproject.toml
	@python=$$($(MAKE) --silent --no-print-directory newest-python) || exit 1; \
	echo "setting up $(VENV_NEWEST) with $$python and the newest jax"; \
	$(VENV_NEWEST)/bin/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear $(VENV_NEWEST)
	@$(VENV_NEWEST)/bin/python $(PIP_INSTALL) --upgrade pip
	@$(VENV_NEWEST)/bin/python $(PIP_INSTALL) --upgrade --upgrade-strategy eager --editable '.[test]'
	@$(VENV_NEWEST)/bin/python -c 'import jax, sys; print("jax", jax.__version__, "on Python", sys.version.split()[0])'
	@touch $@
