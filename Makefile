# make quickstart   train a small GPT through the whole product, plot it, sample from it
# make test         the whole suite, in minutes
# Both make their own environment in .venv; nothing else is needed but make and Python 3.10 or newer.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch's builds for CPUs, preferred where there is no NVIDIA or AMD driver; left out when it does not answer.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --use-pep517 --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest
# Stamps: what running needs, and what testing needs besides.
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-full test-gpu bench bench-train cpu-adam lint wheel clean

help:
	@sed -n 's/^# //p' Makefile | head -n 3
	@echo "also: test-full, test-gpu, bench, bench-train, cpu-adam, lint, wheel, clean"

quickstart: $(INSTALLED)
	$(BIN)/neox-hpc quickstart

test: $(TESTABLE)
	$(PYTEST) -q -m "not full and not gpu"

# Keeps its result in docs/test-full.md.
test-full: $(TESTABLE)
	@{ $(PYTEST) -q -m "not gpu"; echo $$? >$(VENV)/status; } 2>&1 | tee $(VENV)/test-full.log
	@commit=$$(git describe --always --dirty 2>/dev/null || echo unknown); { echo "# The last \`make test-full\`"; echo; \
	  echo "$$(date -u '+%Y-%m-%d %H:%M UTC'), commit $$commit, $$($(BIN)/python --version)," \
	    "$$(nproc) cores:"; echo; \
	  echo '```'; grep -E '^(FAILED|ERROR|SKIPPED)' $(VENV)/test-full.log; tail -n 1 $(VENV)/test-full.log; echo '```'; } >docs/test-full.md
	@exit $$(cat $(VENV)/status)

test-gpu: $(TESTABLE)
	$(PYTEST) -q -m gpu

bench: $(INSTALLED)
	$(BIN)/python -m bench

# Beside other implementations; half an hour on two cores that have nothing else to do.
bench-train: $(TESTABLE)
	$(PIP) --no-deps --requirement bench/requirements.txt
	$(BIN)/python -m bench.train

# DeepSpeed's Adam on the CPU, compiled for this processor: neox_hpc: {cpu_adam_op: .venv/cpu_adam.so}
cpu-adam: $(INSTALLED)
	$(BIN)/python -m model.engine.cpu_adam $(VENV)/cpu_adam.so

lint: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run tests/cluster/slurm-up tests/cluster/hosts-up tests/cluster/sshd-in tests/cluster/laptop-in tests/cluster/apptainer-up tests/cluster/apptainer-in

wheel: $(TESTABLE)
	$(BIN)/python -m build --wheel --outdir dist

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed, $(PYTHON) is older or missing: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv is missing: apt-get install python3-venv (Debian, Ubuntu), or use another Python: make PYTHON=…" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if test ! -e /proc/driver/nvidia/version && test ! -e /dev/kfd && \
	  $(BIN)/python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5)' $(TORCH_INDEX) 2>/dev/null; \
	then $(PIP) --extra-index-url $(TORCH_INDEX) torch || echo "make: $(TORCH_INDEX) is left out" >&2; fi
	$(PIP) --editable '.[train,plot]'
	@touch $@

$(TESTABLE): $(INSTALLED)
	$(PIP) --editable '.[train,plot,test,dev]'
	@touch $@
