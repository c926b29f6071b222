# One target for each process; from the repository's root:
#     docker build --target segmenter -t regionsearch/segmenter .        likewise embedder, searcher and gateway
# For builds that can be repeated, give the base image with its digest: docs/operations.md, "Images".
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# The requirements are in /opt/venv, the code in /opt/regionsearch: a change of the code is a layer of a few megabytes.
# pip stays outside of the environment that it installs into.
FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/venv/bin:/opt/regionsearch/bin:$PATH PYTHONPATH=/opt/regionsearch PIP_PYTHON=/opt/venv/bin/python \
    PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE GRPC_VERBOSITY=NONE
RUN apt-get update && apt-get install -y --no-install-recommends tini && apt-get clean && rm -rf /var/lib/apt/lists/*
RUN python -m venv --without-pip /opt/venv && install -d -o 10001 -g 10001 /data /models

# The bundled models are apart: only the processes that load them have them.
FROM base AS code
COPY . /src
RUN pip install --no-deps --target /opt/regionsearch /src && mv /opt/regionsearch/regionsearch/models/pocket /opt/

# The project without its code, and without what linters and tests are told: its requirements are installed anew only
# when they change.
FROM base AS requirements
WORKDIR /project
COPY pyproject.toml constraints.txt constraints-torch.txt ./
RUN sed -i '/^\[tool.ruff\]/,$d' pyproject.toml && touch README.md \
    && install -d regionsearch services gateway backfill training evaluation models/pocket examples/scenes && touch examples/scenes.json

FROM base AS gateway
COPY --from=requirements /project /opt/project
RUN pip install -c /opt/project/constraints.txt "/opt/project[gateway]" && pip uninstall -y regionsearch
COPY --from=code /opt/regionsearch /opt/regionsearch
ENV REGIONSEARCH_GATEWAY_HOST=0.0.0.0 REGIONSEARCH_GATEWAY_PORT=50050 REGIONSEARCH_GATEWAY_HTTP_PORT=8000 \
    REGIONSEARCH_GATEWAY_METRICS_PORT=9090 REGIONSEARCH_GATEWAY_IMAGE_STORE=/data/images
LABEL org.opencontainers.image.title="Region Search gateway" org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
VOLUME /data
EXPOSE 8000 50050 9090
HEALTHCHECK --interval=10s --timeout=15s --start-period=60s CMD ["python", "-m", "services.runtime.probe", "gateway"]
ENTRYPOINT ["tini", "--", "python", "-m", "gateway"]

FROM base AS searcher
COPY --from=requirements /project /opt/project
# EXTRA=milvus adds what the milvus engine needs; EXTRA=searcher-gpu or searcher-cuvs searches on the GPU.
ARG EXTRA=searcher
# Before 24.1 pip does not see that 26.6.0 is a 26.06.*, which FAISS with cuVS asks for.
RUN if [ "$EXTRA" = searcher-cuvs ]; then env -u PIP_PYTHON pip install "pip>=24.1"; fi \
    && pip install -c /opt/project/constraints.txt "/opt/project[$EXTRA]" && pip uninstall -y regionsearch
COPY --from=code /opt/regionsearch /opt/regionsearch
ENV REGIONSEARCH_SEARCHER_HOST=0.0.0.0 REGIONSEARCH_SEARCHER_PORT=50053 REGIONSEARCH_SEARCHER_METRICS_PORT=9090 \
    REGIONSEARCH_SEARCHER_EMBEDDED__FOLDER=/data
LABEL org.opencontainers.image.title="Region Search searcher" org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
VOLUME /data
EXPOSE 50053 9090
HEALTHCHECK --interval=10s --timeout=15s --start-period=300s CMD ["python", "-m", "services.runtime.probe", "searcher"]
ENTRYPOINT ["tini", "--", "python", "-m", "services.searcher"]

# One set of layers for segmenter and embedder. The packages are CUDA builds, which run on the CPU too; for a small
# CPU-only image point TORCH_INDEX at PyTorch's own CPU index.
FROM base AS torch
ARG TORCH_INDEX=""
COPY constraints-torch.txt /opt/
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c /opt/constraints-torch.txt torch torchvision

FROM torch AS segmenter
COPY --from=requirements /project /opt/project
# transformers: SAM 3 and SAM-HQ run through it.
RUN pip install -c /opt/project/constraints.txt "/opt/project[fastsam]" transformers && pip uninstall -y regionsearch
# SAM2=yes adds the package that SAM 2's models need; its build reads the installed torch.
ARG SAM2=""
RUN if [ -n "$SAM2" ]; then SAM2_BUILD_CUDA=0 pip install --no-build-isolation \
         -c /opt/project/constraints.txt setuptools wheel hydra-core iopath sam2; fi
COPY --from=code /opt/regionsearch /opt/regionsearch
COPY --from=code /opt/pocket /opt/regionsearch/regionsearch/models/pocket
ENV REGIONSEARCH_SEGMENTER_HOST=0.0.0.0 REGIONSEARCH_SEGMENTER_PORT=50051 REGIONSEARCH_SEGMENTER_METRICS_PORT=9090 \
    REGIONSEARCH_MODELS_DIR=/models
LABEL org.opencontainers.image.title="Region Search segmenter" org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
VOLUME /models
EXPOSE 50051 9090
HEALTHCHECK --interval=10s --timeout=15s --start-period=300s CMD ["python", "-m", "services.runtime.probe", "segmenter"]
ENTRYPOINT ["tini", "--", "python", "-m", "services.segmenter"]

FROM torch AS embedder
COPY --from=requirements /project /opt/project
RUN pip install -c /opt/project/constraints.txt "/opt/project[hf]" && pip uninstall -y regionsearch
COPY --from=code /opt/regionsearch /opt/regionsearch
COPY --from=code /opt/pocket /opt/regionsearch/regionsearch/models/pocket
ENV REGIONSEARCH_EMBEDDER_HOST=0.0.0.0 REGIONSEARCH_EMBEDDER_PORT=50052 REGIONSEARCH_EMBEDDER_METRICS_PORT=9090 \
    REGIONSEARCH_MODELS_DIR=/models
LABEL org.opencontainers.image.title="Region Search embedder" org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
VOLUME /models
EXPOSE 50052 9090
HEALTHCHECK --interval=10s --timeout=15s --start-period=300s CMD ["python", "-m", "services.runtime.probe", "embedder"]
ENTRYPOINT ["tini", "--", "python", "-m", "services.embedder"]
