# The project in a container, for a CPU. Not built by us.
#   docker build -t three-stage .
#   docker run --rm -v "$PWD/runs:/home/runs" three-stage align run phi-nano
# For an NVIDIA GPU, name PyTorch's index of your CUDA version, and run it with --gpus all:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t three-stage .
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV HF_HUB_DISABLE_TELEMETRY=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    TOKENIZERS_PARALLELISM=false

WORKDIR /src
COPY constraints.txt ./
RUN pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple \
    "$(grep ^torch== constraints.txt)"
COPY pyproject.toml setup.cfg setup.py README.md LICENSE ./
COPY align ./align
COPY pts ./pts
COPY recipes ./recipes
COPY chat_templates ./chat_templates
RUN pip install --constraint constraints.txt '.[math]'

WORKDIR /home
CMD ["align", "check", "phi-nano"]
