#!/bin/sh
# Writes constraints.txt and constraints-torch.txt from what is installed in .venv: run it after an upgrade that
# passed the tests. torch and what it brings are apart, so that a container's largest layer changes only with them.
set -eu
cd "$(dirname "$0")/.."
heavy='^(torch|torchvision|triton|nvidia-|cuda-|numpy|pillow|sympy|mpmath|networkx|filelock|fsspec|jinja2|markupsafe|typing_extensions|typing-extensions|setuptools)'
all=$(.venv/bin/pip --disable-pip-version-check list --format freeze --exclude-editable | grep -viE '^(regionsearch|pip)==' |
    sed 's/^faiss-cpu==\(.*\)/&\nfaiss-gpu==\1\nfaiss-gpu-cuvs==\1/')  # other extras have the same version
{
    echo "# torch and what it brings; see scripts/pin.sh."
    echo "$all" | grep -iE "$heavy" | sort -f
} > constraints-torch.txt
{
    echo "# Versions that were tested together; see scripts/pin.sh."
    echo "-c constraints-torch.txt"
    echo "$all" | grep -viE "$heavy" | sort -f
} > constraints.txt
