# Everything a developer or a CI machine runs. `make` alone lists the targets.
# Files stand for finished steps (.venv/.env, .venv/.build), so that a second run does nothing twice.

PYTHON ?= python3
VENV ?= .venv
OUT ?= build/gpu-check
ARCHS ?= sm_90
# Processes that test at once.
JOBS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))

BIN := $(VENV)/bin
# Folders too: their date changes when a file in them is added or deleted.
NATIVE := $(shell find csrc)
CXX_FILES := $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.PHONY: help env build demo test test-full test-all faults sim coverage dist docs pictures lint format \
	sources-check cuda-check sanitize bench bench-quick peers gpu-check torch-matrix clean distclean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

env: $(VENV)/.env ## .venv with the pinned tools and torch
build: $(VENV)/.build ## lrfast, compiled and installed in place

# A module is compiled when it is first imported: to compile all takes longer than to install them.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

$(VENV)/.env: requirements/dev.txt requirements/examples.txt requirements/integrations.txt \
		requirements/notebooks.txt
	@$(python-check)
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements/dev.txt
	$(PIP) --no-deps -r requirements/examples.txt -r requirements/integrations.txt \
		-r requirements/notebooks.txt
	touch $@

python-check = $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and \
	'lrfast needs Python 3.10 or newer; name one: make PYTHON=...')"

$(VENV)/.build: $(VENV)/.env setup.py pyproject.toml $(NATIVE)
	@$(BIN)/python tools/compile_in.py $(VENV)
	touch $@

# An environment of its own, with what the demo needs and nothing else.
DEMO := .venv-demo
demo: $(DEMO)/.build ## what lrfast does, in a minute
	$(DEMO)/bin/python -m lrfast.demo

$(DEMO)/.env: requirements/demo.txt
	@$(python-check)
	$(PYTHON) -m venv $(DEMO)
	touch $@

$(DEMO)/.build: $(DEMO)/.env setup.py pyproject.toml $(NATIVE)
	@$(DEMO)/bin/python tools/compile_in.py $(DEMO) requirements/demo.txt
	touch $@

# Whole files to each process; one thread in each, as threads that share cores wait for each other.
# In their order: the C++ programs, which compile at first and then take long, are among the first.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: build ## every claim once, in minutes (PYTEST_ARGS="-k name" for a part)
	$(PYTEST) -m "not full" $(PYTEST_ARGS)

test-full: build ## what `make test` leaves out: whole products of cases, peers' contracts
	$(PYTEST) -m full $(PYTEST_ARGS)

test-all: build ## both
	$(PYTEST) $(PYTEST_ARGS)

# Works on a copy of the tree in build/faults. FAULTS_ARGS=--expected-only: a first impression.
FAULTS ?= *
faults: build ## seed faults, one by one, and say which the tests miss (FAULTS="sgd-*" for some)
	$(BIN)/python -m tests.project.faults $(FAULTS_ARGS) '$(FAULTS)'

# Tests that keep state run over 20 seeds, others over 2 (sim/plugin.py); SIM_SEEDS=1 for one. Single
# tests are handed out, as a file with its seeds takes minutes.
sim: build ## the GPU tests on simulated devices, without a GPU (SIM_ARGS="-k name" for a part)
	PYTHONPATH=tests $(BIN)/python -m sim -n $(JOBS) --dist worksteal $(SIM_ARGS)

# pytest-cov, as a process of xdist that takes ten seconds to end is killed with what coverage holds.
# What C++ programs instantiate several times counts once.
COUNTED := build/coverage
coverage: build ## `test`, counting the lines it reaches; fails below 95 %
	rm -rf $(COUNTED) && mkdir -p $(COUNTED)/cpp
	LRFAST_CPP_COVERAGE=$(abspath $(COUNTED)/cpp) $(MAKE) test PYTEST_ARGS="--cov $(PYTEST_ARGS)"
	$(BIN)/gcovr --filter csrc/core --filter csrc/cpu --merge-lines --txt - --fail-under-line 95 \
		$(COUNTED)/cpp

lint: $(VENV)/.env ## ruff, clang-format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy

format: $(VENV)/.env ## bring all sources into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# It needs no torch, hence no environment.
sources-check: ## the layering of csrc/: includes, formulas, messages, headers that stand alone
	$(PYTHON) tools/check_sources.py

# The environment has the disassembler. What it finds is committed (CUDA_ARGS=--write), as
# docs/performance.md is computed from it.
cuda-check: $(VENV)/.env ## compile the kernels, without a GPU; registers, spills, loops (ARCHS=sm_80,sm_90,sm_100)
	$(BIN)/python tools/check_cuda.py --archs $(ARCHS) $(CUDA_ARGS)

sanitize: $(VENV)/.env ## the C++ tests alone: sanitizers, clones, kernels' bodies on the host
	$(BIN)/python -m pytest tests/cpp/test_cpp_programs.py

# ninja is looked up on PATH. Peers may warn of what the project itself may not.
BENCH = mkdir -p build && PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest \
	-o addopts="--strict-markers" -W default -q --benchmark-only \
	--benchmark-json=build/bench.json benchmarks

bench: build ## the benchmarks on the CPU, to build/bench.json (BENCH_ARGS="-k name" for a part)
	$(BENCH) -m "not gpu" $(BENCH_ARGS)

bench-quick: build ## some of them, in less than a minute
	$(BENCH) -m "quick and not gpu" --seconds 0.1 $(BENCH_ARGS)

dist: $(VENV)/.env ## source distribution and CPU wheels, tried in fresh environments
	$(PIP) -r requirements/release.txt
	$(BIN)/python -m build --sdist --outdir dist
	$(BIN)/python tools/build_wheels.py --out dist $(DIST_ARGS)

peers: $(VENV)/.env ## install what the benchmarks compare with beside torch
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation -r requirements/peers.txt

$(VENV)/.docs: $(VENV)/.env requirements/docs.txt
	$(PIP) --no-deps -r requirements/docs.txt
	touch $@

docs: $(VENV)/.docs pictures ## the site, to build/docs; every warning is an error, every link is followed
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --fresh-env --quiet --jobs 2 \
		docs build/docs
	$(BIN)/python tools/check_site.py build/docs

pictures: build ## the pictures that docs/plots.py makes, to docs/images
	$(BIN)/python docs/plots.py

# GPU machines bring their own torch, and often no network: PYTHON as it is, and no installation.
# GPU_CHECK_ARGS=--dry-run rehearses it anywhere; --budget=300 gives it less time; --commit=... names
# the sources where .git is not.
gpu-check: ## on a machine with a GPU: nine minutes in order of value (OUT=folder for results)
	$(PYTHON) tools/gpu_check.py --out $(OUT) $(GPU_CHECK_ARGS)

# Fresh environments, one after the other: each downloads its torch, 3 GB where that has CUDA.
# LRFAST_CUDA=1 compiles the kernels too; MATRIX_ARGS="-- -k name" runs a part of the tests.
torch-matrix: ## build and test against other versions of torch (VERSIONS="2.11.0 2.15.0")
	$(PYTHON) tools/torch_matrix.py $(if $(VERSIONS),--versions $(VERSIONS)) $(MATRIX_ARGS)

clean: ## remove what was built
	rm -rf build dist *.egg-info lrfast/*.so $(VENV)/.build
	find docs/images -name '*.svg' -delete

distclean: clean ## and the environments and the tools' caches
	rm -rf $(VENV) $(DEMO) .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -r {} +
