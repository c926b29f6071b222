#!/usr/bin/env bash
# Proves the package: builds sdist and wheel, checks them, installs the wheel into an empty environment, and there, outside of
# the repository, starts `regionsearch up --demo` and searches. Takes minutes and 7 GB in the temporary folder.
set -euo pipefail
cd "$(dirname "$0")/.."

unset PYTHONPATH
python=${PYTHON:-python3}
port=${PORT:-18090}
repository=$PWD
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$work"' EXIT

say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }

say "build and check"
"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install -q build twine
"$work/tools/bin/python" -m build --outdir "$work/dist" . >"$work/build.log" || { tail "$work/build.log"; exit 1; }
"$work/tools/bin/twine" check --strict "$work"/dist/*
ls -l "$work"/dist

say "install the wheel into an empty environment"
"$python" -m venv "$work/env"
wheel=$(echo "$work"/dist/*.whl)
"$work/env/bin/pip" install -q -c constraints.txt "$wheel[all]"

say "start it outside of the repository"
cd "$work"
"$work/env/bin/regionsearch" up --demo --port "$port" --grpc-port "$((port + 1))" --data-dir "$work/data" &
server=$!
for _ in $(seq 300); do
    kill -0 "$server" || exit 1
    found=$("$work/env/bin/regionsearch" search teapot --url "http://127.0.0.1:$port" 2>/dev/null) && [[ $found == *scene-* ]] && break
    sleep 1
done
echo "$found"
[[ $found == *scene-* ]]
"$work/env/bin/python" - "$repository" <<'CHECK'
import sys
import regionsearch
assert not regionsearch.__file__.startswith(sys.argv[1]), "the checkout answered, not the package"
CHECK
curl -fs "http://127.0.0.1:$port/" | grep -q '<title>'
say "the package works"
