# Two images, `service` and `trainer`, each for the CPU (DEVICE=cpu) or for CUDA (DEVICE=gpu):
#
#     docker build --target service --tag coevo-service:cpu .
#
# Packages are installed in BUILD_IMAGE and copied into BASE_IMAGE. Behind a proxy with a certificate of its own, or with
# a package index of your own, give a BUILD_IMAGE that has the certificate and a pip.conf: nothing of them comes along.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG BUILD_IMAGE=python:3.11-slim-bookworm
ARG DEVICE=cpu

# ---- packages: pyproject.toml's extras in /opt/coevo ----

FROM ${BUILD_IMAGE} AS packages
ARG DEVICE
ENV DEVICE=$DEVICE PATH=/opt/coevo/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/coevo && pip install --upgrade pip
WORKDIR /source
COPY constraints.txt LICENSE pyproject.toml ./
RUN touch README.md
# torch first: its plain name would bring the CUDA build. The other constraints are the CPU's: vLLM for CUDA has its own.
RUN torch=$(grep '^torch==' constraints.txt) && \
    if [ "$DEVICE" = gpu ]; then sed -i '/^torch/!d' constraints.txt && pip install "$torch"; \
    else pip install "$torch+cpu" || pip install --index-url https://download.pytorch.org/whl/cpu "$torch"; fi

FROM packages AS wheel
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheel .

# Without sources at first: they change more often than what they need.
FROM packages AS trainer-packages
RUN pip install --constraint constraints.txt ".[trainer]"
COPY containers/prune.sh .
RUN sh prune.sh "$DEVICE"
COPY --from=wheel /wheel /wheel
RUN pip install --no-deps --force-reinstall /wheel/*.whl && pip uninstall --yes pip

FROM packages AS service-packages
RUN pip install --constraint constraints.txt ".[service-$DEVICE]"
COPY containers/prune.sh .
RUN sh prune.sh "$DEVICE"
COPY --from=wheel /wheel /wheel
RUN pip install --no-deps --force-reinstall /wheel/*.whl && pip uninstall --yes pip

# ---- what runs ----

FROM ${BASE_IMAGE} AS base-cpu

FROM ${BASE_IMAGE} AS base-gpu
# Triton compiles the launchers of its kernels when they first run.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

FROM base-${DEVICE} AS base
RUN useradd --uid 1000 --create-home coevo && install -d -o coevo -g coevo /work /work/store /work/runs
# What libraries keep for later goes to /tmp, so that nothing else need be writable.
ENV HOME=/tmp PATH=/opt/coevo/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /work
USER 1000:1000

FROM base AS trainer
COPY --from=trainer-packages /opt/coevo /opt/coevo
COPY recipes recipes
# Coordinator and workers are well while they reach the queue.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["coevo", "jobs"]
CMD ["python", "-m", "trainer.worker", "--branch", "all"]

FROM base AS service
USER root
RUN apt-get update && apt-get install --yes --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
USER 1000:1000
COPY --from=service-packages /opt/coevo /opt/coevo
COPY recipes recipes
COPY containers/ready.py /opt/coevo/ready.py
# A container's own address is not 127.0.0.1; which of the host's reach it is said where its port is published.
ENV COEVO_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=10s --start-period=30m CMD ["python", "/opt/coevo/ready.py"]
CMD ["coevo", "serve", "recipes/miniature.toml"]
