# `make` alone lists the targets. Everything installs into $(VENV).
PYTHON ?= python3
VENV ?= .venv
# Installed in one call before the package, so that pip takes the pair that fits together.
# Smaller on a machine without a GPU: make venv TORCH="torch torchvision --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch torchvision
# Folder with splits.csv, jsrt/ and protocols/ (see benchmarks/README.md).
DATA ?= ../shared/data
# The command `monailabel` starts the first `python` on PATH.
export PATH := $(abspath $(VENV))/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-long test-fast lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	python -m pip install $(TORCH)
	python -m pip install -e '.[test]'
	touch $@

venv: $(VENV)/.installed ## make $(VENV) and install the package with its test tools into it

demo: $(VENV)/.installed ## run the loop on sample-data, then say where the report is and how to serve the result
	samcorrect demo

# One thread a process, a fifth less time than with all threads in each; three processes for two cores, since many tests
# wait for servers and for the disk.
PYTEST_ON_ALL_CORES = OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 SAMCORRECT_THREADS=1 python -m pytest \
	-n $$(python -c 'import os; print(os.cpu_count() * 3 // 2)') --dist worksteal --durations=25

test: $(VENV)/.installed ## run the tests, the slow ones too, on all cores
	$(PYTEST_ON_ALL_CORES) -m 'not long'

test-long: $(VENV)/.installed ## run what shows at length what those of make test show
	$(PYTEST_ON_ALL_CORES) -m long

test-fast: $(VENV)/.installed ## run the tests that are not marked slow
	python -m pytest -m 'not slow and not long'

lint: $(VENV)/.installed ## check style, format and import layers
	ruff check .
	ruff format --check .
	lint-imports

bench: $(VENV)/.installed ## measure the arms table of benchmarks/README.md on the chest X-rays in $(DATA)
	python benchmarks/split.py --data $(DATA) --dataset jsrt --out bench-out/data
	python benchmarks/arms.py --images bench-out/data/images --labels bench-out/data/labels \
		--test-images bench-out/data/test-images --test-labels bench-out/data/test-labels \
		--protocol $(DATA)/protocols/jsrt_lungs.yaml --out bench-out/jsrt --json bench-out/jsrt.json --pixel-mm 0.7

clean: ## remove what builds, tests and the demo leave behind ($(VENV) stays)
	rm -rf build dist demo-out bench-out apps/*.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find apps tests benchmarks sample-data -name __pycache__ -type d -prune -exec rm -rf {} +
