# sedd_fast: `make` lists the commands. Each sets up what it needs in $(VENV) first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CSRC := $(wildcard $(foreach suffix,cpp h cu cuh,csrc/*.$(suffix) csrc/*/*.$(suffix) csrc/*/*/*.$(suffix)))
FORMATTED := $(CSRC) $(wildcard tests/helpers/*.cpp tests/helpers/*/*.cpp tests/helpers/*/*.h)
SOURCES := setup.py pyproject.toml constraints.txt $(CSRC)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint rows fuzz sanitize faults arm bench compile-kernels gpu format clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed ## virtual environment, package and test tools

$(VENV)/installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { echo "a virtual environment could not be made: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	SEDD_FAST_CPU=0 SEDD_FAST_CUDA=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@rm -f sedd_fast/_cpu.*.so sedd_fast/_cuda.*.so  # where one no longer compiles, the old one would remain
	$(BIN)/python setup.py --quiet build_ext --inplace --build-temp build/objects  # pip would hide its progress, and compile everything again
	@$(BIN)/python -c 'from sedd_fast.backends import cpp; print(cpp.unavailable() or "C++ kernels: built")'
	@touch $@

demo: install ## train on this computer for five minutes, then evaluate, sample and infill
	GOMP_SPINCOUNT=10000 $(BIN)/sedd-fast demo  # waiting threads leave the cores to others

lint: install ## ruff, type checker, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

test: install lint ## lint, then all tests but the slow ones
	$(BIN)/pytest -q -n auto --maxprocesses=4 --dist loadfile --durations=10

rows: install ## check the C++ row functions by themselves, for every instruction set
	$(BIN)/python tests/helpers/check_rows.py

fuzz: install ## the C++ kernels against the reference on random inputs (MINUTES=30)
	OMP_WAIT_POLICY=passive $(BIN)/python tests/fuzz/run.py --minutes $(or $(MINUTES),5)

sanitize: install ## the C++ kernels under ASan, UBSan and TSan (MINUTES of fuzzing)
	OMP_WAIT_POLICY=passive $(BIN)/python tests/helpers/sanitize.py --minutes $(or $(MINUTES),1)

arm: install ## the same compiled for Arm, in an emulator
	$(BIN)/python tests/helpers/check_rows.py --arm

faults: install ## kill training, fill its disk, damage its files (FAULTS= passes options)
	$(BIN)/python tests/faults/run_faults.py $(FAULTS)

bench: install ## the benchmark of every operation, a training step and a sampling run
	$(BIN)/python benchmarks/run.py

compile-kernels: install ## compile every GPU kernel without a GPU: registers, shared memory, spills
	$(BIN)/python -m benchmarks.studies.compile_kernels $(KERNELS)

gpu: ## on a GPU machine, with its own Python and torch: build, GPU tests, figures (GPU= passes options)
	$(PYTHON) benchmarks/on_gpu.py $(GPU)

format: install ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

clean: ## remove what was built
	rm -rf $(VENV) build dist *.egg-info sedd_fast/*.so .pytest_cache .mypy_cache .ruff_cache
