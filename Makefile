# sedd_fast: `make` lists the commands. Each sets up what it needs in $(VENV) first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CSRC := $(wildcard $(foreach suffix,cpp h cu cuh,csrc/*.$(suffix) csrc/*/*.$(suffix) csrc/*/*/*.$(suffix)))
FORMATTED := $(CSRC) $(wildcard tests/helpers/*.cpp tests/helpers/*/*.cpp tests/helpers/*/*.h)

# The tests start many processes. Without bytecode each compiles torch again: 5 s instead of 2.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install tools demo test lint rows fuzz sanitize faults arm bench compile-kernels gpu format clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed ## virtual environment with the package and what users need
tools: $(VENV)/tools $(VENV)/installed ## the same with linters and test tools

# $(call stage,text,command): a line every 15 seconds, until the command ends, says that it goes on.
define stage
	@echo "$(1)"; \
	( s=0; while sleep 15 >/dev/null 2>&1 && kill -0 $$$$ 2>/dev/null; do s=$$((s + 15)); echo "    $$s s, $(VENV) has $$(du -sm $(VENV) | cut -f1) MB"; done ) & beat=$$!; \
	$(2); status=$$?; kill $$beat; exit $$status
endef
# Temporary files are in $(VENV), so that its size shows what is downloaded, and /tmp may be small. Compiling every
# module of every package to bytecode takes as long as all else.
PIP = mkdir -p $(VENV)/tmp && TMPDIR=$(abspath $(VENV)/tmp) $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
PACKAGE := .[train,plot]
BUILD := $(BIN)/python setup.py --quiet build_ext --inplace --build-temp build/objects
BUILD_TOOLS := 'setuptools>=77' 'pybind11>=2.12' 'ninja>=1.11'

$(VENV)/packages: setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12")'
	@echo "install 1/3: virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "a virtual environment could not be made: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	$(call stage,install 2/3: torch and other packages,$(PIP) $(BUILD_TOOLS) && export SEDD_FAST_CPU=0 SEDD_FAST_CUDA=0 && $(PIP) --no-build-isolation -c constraints.txt -e '$(PACKAGE)')
	@touch $@

$(VENV)/installed: $(VENV)/packages $(CSRC)
	@rm -f sedd_fast/_cpu.*.so sedd_fast/_cuda.*.so  # where one no longer compiles, the old one would remain
	$(call stage,install 3/3: compiling the kernels,$(BUILD))  # pip would hide its progress, and compile everything again
	@$(BIN)/python -c 'from sedd_fast.backends import cpp; print("install done; C++ kernels:", cpp.unavailable() or "built")'
	@touch $@

$(VENV)/tools: $(VENV)/packages
	$(call stage,tools: linters and test tools,$(PIP) -c constraints.txt 'sedd-fast[test]')
	@touch $@

demo: install ## train on this computer for five minutes, then evaluate, sample and infill
	GOMP_SPINCOUNT=10000 $(BIN)/sedd-fast demo  # waiting threads leave the cores to others

lint: $(VENV)/tools ## ruff, type checker, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

test: tools lint ## lint, then all tests but the slow ones
	$(BIN)/pytest -q -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder --durations=10

rows: tools ## check the C++ row functions by themselves, for every instruction set
	$(BIN)/python tests/helpers/check_rows.py

fuzz: tools ## the C++ kernels against the reference on random inputs (MINUTES=30)
	OMP_WAIT_POLICY=passive $(BIN)/python tests/fuzz/run.py --minutes $(or $(MINUTES),5)

sanitize: tools ## the C++ kernels under ASan, UBSan and TSan (MINUTES of fuzzing)
	OMP_WAIT_POLICY=passive $(BIN)/python tests/helpers/sanitize.py --minutes $(or $(MINUTES),1)

arm: tools ## the same compiled for Arm, in an emulator
	$(BIN)/python tests/helpers/check_rows.py --arm

faults: tools ## kill training, fill its disk, damage its files (FAULTS= passes options)
	$(BIN)/python tests/faults/run_faults.py $(FAULTS)

bench: tools ## the benchmark of every operation, a training step and a sampling run
	$(BIN)/python benchmarks/run.py

compile-kernels: tools ## compile every GPU kernel without a GPU: registers, shared memory, spills
	$(BIN)/python -m benchmarks.studies.compile_kernels $(KERNELS)

gpu: ## on a GPU machine, with its own Python and torch: build, GPU tests, figures (GPU= passes options)
	$(PYTHON) benchmarks/on_gpu.py $(GPU)

format: tools ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

clean: ## remove what was built
	rm -rf $(VENV) build dist *.egg-info .editable sedd_fast/*.so sedd_fast/kernels .pytest_cache .mypy_cache .ruff_cache
