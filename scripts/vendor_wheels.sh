#!/bin/sh
# Wheels that `python -m benchmarks.gpu --wheels vendor` needs next to torch and numpy, for a machine without a network:
#     scripts/vendor_wheels.sh vendor [PYTHON_VERSION]
# torchvision must be that of the machine's torch; remove it from the folder if the machine has its own.
set -eu
folder=$1 python=${2:-3.11}
cd "$(dirname "$0")/.."
.venv/bin/pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: --python-version "$python" -c constraints.txt \
    --dest "$folder" \
    torchvision segment-anything timm open-clip-torch safetensors pycocotools pillow \
    pydantic pydantic-core pydantic-settings python-dotenv annotated-types typing-inspection typing-extensions \
    grpcio grpcio-health-checking grpcio-reflection grpcio-status googleapis-common-protos protobuf \
    opentelemetry-api opentelemetry-sdk opentelemetry-semantic-conventions opentelemetry-instrumentation \
    opentelemetry-instrumentation-grpc opentelemetry-exporter-otlp-proto-grpc opentelemetry-exporter-otlp-proto-common \
    opentelemetry-exporter-otlp-common \
    opentelemetry-proto wrapt prometheus-client structlog cryptography cffi pycparser \
    huggingface-hub httpx2 httpcore2 truststore anyio h11 tqdm pyyaml filelock packaging regex ftfy wcwidth idna
du -sm "$folder"
