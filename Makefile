# plm-edge. `make demo` chats, `make test` tests; both set up what is missing first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PEERS  := .venv-peers
WHEELS := .venv-wheels
WHEEL_TOOLS := build auditwheel setuptools ziglang==0.17.1
NATIVE := plm_edge/native/libplm_edge.so
SOURCES := $(wildcard plm_edge/native/*.c plm_edge/native/*.h) plm_edge/native/build.py

.PHONY: help demo test test-peers check sanitize bench native wheels emulated-pi clean
.DEFAULT_GOAL := help

help:  ## show this text
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

demo: $(VENV)/.installed $(NATIVE)  ## set up, then chat with the demo model
	@$(BIN)/plm-edge chat demo

test: $(VENV)/.dev $(NATIVE)  ## set up, then every test that needs no llama.cpp
	$(BIN)/pytest

test-peers: $(PEERS)/.installed $(NATIVE)  ## compare with llama.cpp (builds it once: 12 minutes on 2 cores)
	$(PEERS)/bin/python tools/fetch_llama_sdist.py
	$(PEERS)/bin/pytest tests/peers

check: $(VENV)/.dev $(NATIVE)  ## format, lint, types, sanitizers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tools/check_types.py
	$(MAKE) sanitize

sanitize: $(VENV)/.dev  ## the C code under AddressSanitizer and UBSan
	PYTHON=$(BIN)/python sh tests/native/sanitize.sh

bench: $(VENV)/.dev $(NATIVE)  ## speed of this machine on a model of PLM-1.8B's shape
	$(BIN)/python benchmarks/speed.py

native: $(NATIVE)  ## compile the C kernels

$(NATIVE): $(SOURCES)
	$(PYTHON) plm_edge/native/build.py

wheels: $(WHEELS)/.installed  ## wheels for x86-64 and 64-bit ARM, and the source distribution, into dist/
	$(WHEELS)/bin/python tools/build_wheels.py

emulated-pi: wheels  ## unpack an emulated Raspberry Pi for the tests (Debian, as root, qemu-user-static)
	$(WHEELS)/bin/python tools/emulated_pi.py build

# The environments: a stamp file says that everything pyproject.toml asks for is in.
$(VENV)/.installed: pyproject.toml setup.py
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

# Without llama.cpp's AMX: compilers leave out a part of its tile configuration, and it crashes in the first product
# (ggml-org/llama.cpp, pull request 26954). pip keeps what it once built whatever the flags were, so this build has a
# cache to itself.
$(PEERS)/.installed: pyproject.toml setup.py
	test -d $(PEERS) || $(PYTHON) -m venv $(PEERS)
	CMAKE_ARGS="$$CMAKE_ARGS -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__" \
	    $(PEERS)/bin/pip install --quiet --cache-dir $(HOME)/.cache/plm-edge-pip-without-amx --editable '.[dev,llama]'
	@touch $@

$(WHEELS)/.installed: Makefile
	test -d $(WHEELS) || $(PYTHON) -m venv $(WHEELS)
	$(WHEELS)/bin/pip install --quiet --upgrade $(WHEEL_TOOLS)
	@touch $@

clean:  ## remove the environments and what was compiled
	rm -rf $(VENV) $(PEERS) $(WHEELS) build dist *.egg-info plm_edge/native/*.so
