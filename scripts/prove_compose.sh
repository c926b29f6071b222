#!/usr/bin/env bash
# Proves the containers: builds them, starts the compose stack, ingests and searches through the published port,
# scales the embedder, kills a worker under load, restarts every service under load, and takes the stack down and up
# again. Any failed request or lost picture ends it with an error. Needs docker and docker-compose (or compose v2).
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v docker-compose >/dev/null; then compose=(docker-compose); else compose=(docker compose); fi
compose+=(-p regionsearch-proof)
export HTTP_PORT=${HTTP_PORT:-18080} GRPC_PORT=${GRPC_PORT:-15080}
url=http://127.0.0.1:$HTTP_PORT
trap '"${compose[@]}" down -v --remove-orphans >/dev/null 2>&1 || true' EXIT

say() { printf '\n== %s\n' "$*"; }

wait_ready() {
    for _ in $(seq 240); do
        curl -fs "$url/readyz" >/dev/null && return
        sleep 1
    done
    "${compose[@]}" logs --tail 20
    echo "the stack is not ready" >&2
    exit 1
}

count() { curl -fs "$url/v1/collections/default" | sed -E 's/.*"image_count":([0-9]+).*/\1/'; }

# Searches until the file $1 disappears; every answer must be a 200.
searching() {
    local code n=0
    while [ -e "$1" ]; do
        code=$(curl -s -o /dev/null -w '%{http_code}' "$url/v1/collections/default/search" \
            -H 'content-type: application/json' -d "{\"query\": {\"text\": \"thing number $n\"}}")
        [ "$code" = 200 ] || { echo "a search was answered $code"; return 1; }
        n=$((n + 1))
    done
    echo "$n searches, all answered"
}

under_load() {
    local flag
    flag=$(mktemp)
    searching "$flag" &
    local load=$!
    "$@"
    rm -f "$flag"
    wait "$load"
}

say "build"
"${compose[@]}" build
docker images --format '{{.Repository}} {{.Size}}' | grep ^regionsearch/

say "start"
"${compose[@]}" up -d
wait_ready

say "ingest and search"
for scene in examples/scenes/*.jpg; do printf -- '-F files=@%s ' "$scene"; done |
    xargs curl -fs "$url/v1/collections/default/images" | grep -o '"outcome":"[a-z]*"' | sort | uniq -c
images=$(count)
curl -fs "$url/v1/collections/default/search" -H 'content-type: application/json' \
    -d '{"query": {"text": "teapot"}, "level": "region", "page_size": 1}' | grep -q '"hits":\[{'

say "two embedders share the calls"
"${compose[@]}" up -d --no-recreate --scale embedder=2
sleep 5
for _ in $(seq 60); do
    healthy=$("${compose[@]}" ps -q embedder | xargs docker inspect -f '{{.State.Health.Status}}' | grep -c '^healthy' || true)
    [ "$healthy" = 2 ] && break
    sleep 2
done
"${compose[@]}" restart gateway >/dev/null # finds the new replica at once, not when its connections are renewed
wait_ready
for n in $(seq 40); do
    curl -fs "$url/v1/embeddings" -H 'content-type: application/json' -d "{\"texts\": [\"word $n\"]}" >/dev/null
done
for id in $("${compose[@]}" ps -q embedder); do
    calls=$(docker exec "$id" python -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9090/metrics').read().decode())" |
        sed -nE 's/^grpc_server_handled_total\{.*grpc_code="OK".*grpc_method="EmbedTexts".*\} ([0-9.]+)/\1/p')
    echo "one embedder answered ${calls:-0} calls"
    [ "${calls%.*}" -gt 5 ]
done

say "a worker is killed under load"
kill_one() { docker kill "$("${compose[@]}" ps -q embedder | head -n 1)" >/dev/null; sleep 10; }
under_load kill_one

say "everything survives down and up"
"${compose[@]}" down
"${compose[@]}" up -d
wait_ready
[ "$(count)" = "$images" ] || { echo "$images pictures before, $(count) after" >&2; exit 1; }

say "all proven: $images pictures"
