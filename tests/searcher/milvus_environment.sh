#!/bin/sh
# Makes the environment in which the tests start milvus-lite: it needs faiss-cpu and would overwrite faiss-gpu, so it
# never shares an environment with the searcher. Usage: milvus_environment.sh [folder], default build/milvus-lite.
set -eu
folder="${1:-$(dirname "$0")/../../build/milvus-lite}"
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet "milvus-lite>=3.2.2" pymilvus
echo "$folder/bin/milvus-lite"
