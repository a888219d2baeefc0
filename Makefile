# make demo   from a prompt to demo.mp4, on a machine that has only Python >= 3.10 and a C++17 compiler
# make test   everything that a change must pass
# make bench-cpu  glimt beside Diffusers on the bundled model; the table goes to benchmarks/reports/
# make gpu-report  on a machine with a GPU: correctness of every kernel, their speed, one forward; minutes
# make compile-report  builds a whole transformer of Wan's 1.3B shape for three cards, with no GPU (minutes, 8 GB)
# make mutations  plants bugs in the kernels one at a time; the tests must catch each (minutes)
# make aot    compiles every Triton kernel for every GPU and compares with the committed table (minutes)
# make aot-3.6    the same with Triton 3.6.0, in .venv-triton36
# make aot-cuda   compiles the CUDA convolutions for every GPU and compares with the committed table (minutes; needs nvcc)
# make tensorrt-plugin  the plugins that run our kernels inside TensorRT engines, in build/tensorrt; with TensorRT's headers
#                       (TENSORRT_INCLUDE="DIR;DIR"), else compiled against our own declarations, as a check of the source
# make format what `make test` would complain of, where a tool can mend it
#
# PYTHON=python3.12      the interpreter that makes .venv
# PIP_ARGS="..."         more for pip, such as --index-url of PyTorch's CPU builds (PyPI's bring CUDA along)
# GLIMT_CUDA=OFF         CUDA kernels: AUTO (if an nvcc is found; the default), ON (fail without one) or OFF
# PYTEST_ARGS="..."      more for pytest in `make test`, such as -vv (each test), -ra (skips), --durations=10 (slowest)
# PROMPT="..."           what `make demo` draws
# AOT_ARGS="..."         options of `python -m glimt_kernels.aot` in `make aot`, such as --op attention, --write
# BENCH_ARGS="..."       options of `python -m benchmarks.cpu` or of `python -m benchmarks.gpu_report`, benchmarks.compile_report
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_ARGS ?=
export GLIMT_CUDA ?= AUTO
PYTEST_ARGS ?=
PROMPT ?= a red ball rolls left over a green floor
AOT_ARGS ?=
BENCH_ARGS ?=
TENSORRT_INCLUDE ?=
VENV := .venv
VENV_36 := .venv-triton36
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq $(PIP_ARGS) -c constraints.txt

# What the installed package is made of; Python sources are not among it, the install is editable.
NATIVE := $(shell find csrc cmake kernels -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cmake')
INSTALL_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard cmake/*.py) $(NATIVE) $(VENV)/.stamp-cuda
FORMATTED := $(filter-out %.cmake,$(NATIVE)) $(wildcard tests/kernels/emulator/* tests/kernels/manifest/*)

.PHONY: help demo test lint unit mutations aot aot-3.6 aot-cuda tensorrt-plugin format bench-cpu gpu-report compile-report clean always

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^$$/q'

# ---- environment -----------------------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "glimt needs Python >= 3.10; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# PyTorch first and alone: nothing else may then pull another build of it.
$(VENV)/.stamp-torch: constraints.txt | $(BIN)/python
	@echo "installing PyTorch and the build tools (minutes, the first time)"
	@$(PIP) torch numpy
	@$(PIP) scikit-build-core nanobind cmake ninja
	@touch $@

# Written only when GLIMT_CUDA is another one than at the last build, which is then made anew.
$(VENV)/.stamp-cuda: always | $(BIN)/python
	@[[ -f $@ && $$(<$@) == "$$GLIMT_CUDA" ]] || { rm -f build/*/CMakeCache.txt; echo "$$GLIMT_CUDA" > $@; }

$(VENV)/.stamp-install: $(INSTALL_INPUTS) $(VENV)/.stamp-torch
	@echo "building and installing glimt"
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.stamp-test: $(INSTALL_INPUTS) $(VENV)/.stamp-torch
	@echo "building and installing glimt with what its tests need"
	@$(PIP) --no-deps nvidia-cutlass # headers; what it depends on is for its Python, of which pip would warn
	@$(PIP) --no-warn-conflicts --no-build-isolation -e '.[test,oracle,judge,train,triton,bench,onnx,rtx]'
	@touch $@ $(VENV)/.stamp-install

# Triton 3.6.0 for older stacks. All else, PyTorch above all, is that of .venv, whose packages come behind its own.
$(VENV_36)/.stamp: $(VENV)/.stamp-test
	@echo "making $(VENV_36) with Triton 3.6.0"
	@$(BIN)/python -m venv --without-pip $(VENV_36)
	@$(BIN)/python -m pip --disable-pip-version-check --python $(VENV_36)/bin/python install -qq $(PIP_ARGS) \
	    --no-deps triton==3.6.0
	@site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	echo "import site; site.addsitedir('$$site')" > \
	    $$($(VENV_36)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/behind.pth
	@touch $@

# ---- what people ask for ---------------------------------------------------------------------------------------------

# Timed around a second make, so that the environment's share is told apart from the request's.
demo:
	@start=$$(date +%s); $(MAKE) --no-print-directory $(VENV)/.stamp-install; ready=$$(date +%s); \
	$(BIN)/glimt generate "$(PROMPT)" -o demo.mp4; end=$$(date +%s); \
	echo "environment $$((ready - start)) s, request with start-up $$((end - ready)) s"; \
	echo "$(CURDIR)/demo.mp4"

test: lint unit

lint: $(VENV)/.stamp-test
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check --diff .
	@$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	@$(BIN)/mypy --no-error-summary

unit: $(VENV)/.stamp-test $(VENV_36)/.stamp
	@$(BIN)/python -m pytest -q -o console_output_style=classic $(PYTEST_ARGS)

mutations: $(VENV)/.stamp-test
	@$(BIN)/python tests/mutations --write

aot: $(VENV)/.stamp-test
	@GLIMT_TRITON=1 $(BIN)/python -m glimt_kernels.aot $(AOT_ARGS)

aot-3.6: $(VENV_36)/.stamp
	@GLIMT_TRITON=1 $(VENV_36)/bin/python -m glimt_kernels.aot $(AOT_ARGS)

aot-cuda: $(VENV)/.stamp-test
	@GLIMT_TRITON=1 $(BIN)/python -m glimt_kernels.aot_cuda $(AOT_ARGS)

tensorrt-plugin: $(VENV)/.stamp-torch
	@$(BIN)/cmake -S csrc/tensorrt -B build/tensorrt "-DGLIMT_TENSORRT_INCLUDE=$(TENSORRT_INCLUDE)"
	@$(BIN)/cmake --build build/tensorrt

format: $(VENV)/.stamp-test
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/clang-format -i $(FORMATTED)

bench-cpu: $(VENV)/.stamp-test
	@$(BIN)/python -m benchmarks.cpu $(BENCH_ARGS)

gpu-report: $(VENV)/.stamp-test
	@$(BIN)/python -m benchmarks.gpu_report $(BENCH_ARGS)

compile-report: $(VENV)/.stamp-test
	@$(BIN)/python -m benchmarks.compile_report --case wan-1.3b --out benchmarks/reports/compile.md $(BENCH_ARGS)

clean:
	@rm -rf build demo.mp4 .mypy_cache .pytest_cache .ruff_cache .hypothesis
