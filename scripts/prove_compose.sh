#!/usr/bin/env bash
# Proves the containers: builds them, starts the compose stack, checks that every container is locked down, ingests and
# searches through the published port, scales the embedder, kills a worker under load, restarts every container under
# load, takes the stack down and up again, and kills the searcher that writes while its read replicas answer. Any
# failed request or lost image ends it with an error. Needs docker, docker-compose (or compose v2), haproxy, and `make
# test`'s environment for Locust.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v docker-compose >/dev/null; then compose=(docker-compose); else compose=(docker compose); fi
compose+=(-p regionsearch-proof)
export HTTP_PORT=${HTTP_PORT:-18080-18081} GRPC_PORT=${GRPC_PORT:-15080-15081} # two gateways take one each
python=${PYTHON:-.venv/bin/python}
trap '"${compose[@]}" down -v --remove-orphans >/dev/null 2>&1 || true' EXIT

say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }

wait_ready() {
    url=http://127.0.0.1:$("${compose[@]}" port gateway 8000 | sed 's/.*://')
    for _ in $(seq 240); do
        curl -fs "$url/readyz" >/dev/null && return
        sleep 1
    done
    "${compose[@]}" logs --tail 20
    echo "the stack is not ready" >&2
    exit 1
}

# Waits until $1 containers of the services that follow are healthy, each.
wait_healthy() {
    local wanted=$1 service healthy
    shift
    for service; do
        for _ in $(seq 120); do
            healthy=$("${compose[@]}" ps -q "$service" | xargs docker inspect -f '{{.State.Health.Status}}' | grep -c '^healthy' || true)
            [ "$healthy" = "$wanted" ] && continue 2
            sleep 2
        done
        echo "$service: $healthy of $wanted are healthy" >&2
        exit 1
    done
}

# Whether no container may do more than it has to, as it finds itself: no root, no capabilities, nothing to write
# but its volumes, no port on any address but this machine's own.
locked_down() {
    local id
    for id in $("${compose[@]}" ps -q); do
        docker exec "$id" sh -ec '
            [ "$(id -u)" = 10001 ]
            grep -q "^CapEff:[[:space:]]*0*$" /proc/1/status
            grep -q "^NoNewPrivs:[[:space:]]*1$" /proc/1/status
            for folder in / /opt /home /var/tmp; do ! touch "$folder/file" 2>/dev/null || exit 1; done
            touch /tmp/file && rm /tmp/file
        ' || { echo "$(docker inspect -f '{{.Name}}' "$id") may do too much" >&2; exit 1; }
        ! docker port "$id" | grep -v -- '-> 127\.0\.0\.1:' || exit 1
    done
}

# Texts that each embedder has embedded, one line each.
embedded() {
    local id
    for id in $("${compose[@]}" ps -q embedder); do
        docker exec "$id" python -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9090/metrics').read().decode())" |
            sed -nE 's/^grpc_server_handled_total\{.*grpc_code="OK".*grpc_method="EmbedTexts".*\} ([0-9]+).*/\1/p;$a\0' | head -n 1
    done
}

embed() {
    curl -fs "$url/v1/embeddings" -H 'content-type: application/json' -d "{\"texts\": [\"$*\"]}" >/dev/null
}

add() {
    local answer
    answer=$(curl -fs "$url/v1/collections/default/images" -F "files=@$1")
    [[ $answer == *'"outcome":"created"'* ]] || { echo "$1: $answer" >&2; exit 1; }
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

say "every container is locked down"
locked_down

say "ingest and search"
scenes=(examples/scenes/*.jpg)
for scene in "${scenes[@]:2}"; do add "$scene"; done
images=$(count)
echo "$images images"
curl -fs "$url/v1/collections/default/search" -H 'content-type: application/json' \
    -d '{"query": {"text": "teapot"}, "level": "region", "page_size": 1}' | grep -q '"hits":\[{'

say "two embedders share the calls, and nobody told the gateway"
"${compose[@]}" up -d --no-recreate --scale embedder=2
wait_healthy 2 embedder
begin=$SECONDS
while embedded | grep -qx 0; do
    [ $((SECONDS - begin)) -lt 120 ] || { echo "the new embedder was not found" >&2; exit 1; }
    embed "word $SECONDS $RANDOM"
done
echo "the new one was found after $((SECONDS - begin)) s"
mapfile -t before < <(embedded)
for n in $(seq 40); do embed "another word $n"; done
mapfile -t after < <(embedded)
for one in 0 1; do
    echo "one embedder answered $((after[one] - before[one])) of 40 calls"
    [ $((after[one] - before[one])) -gt 10 ]
done

say "a worker is killed under load"
kill_one() { docker kill "$("${compose[@]}" ps -q embedder | head -n 1)" >/dev/null; sleep 10; }
under_load kill_one

say "every container is restarted under load"
"${compose[@]}" up -d --no-recreate --scale segmenter=2 --scale embedder=2 --scale gateway=2
wait_healthy 2 segmenter embedder gateway
PATH=/usr/sbin:$PATH "$python" -m loadtests.rolling --compose-project regionsearch-proof --out "$(mktemp -d)"
images=$(count) # the load has added some

say "everything survives down and up"
"${compose[@]}" down
"${compose[@]}" up -d
wait_ready
[ "$(count)" = "$images" ] || { echo "$images images before, $(count) after" >&2; exit 1; }

say "read replicas answer while the searcher that writes is gone"
export COMPOSE_PROFILES=replicas SEARCHER_READS=dns:///searcher-reads:50053
"${compose[@]}" up -d --scale searcher-replica=2
wait_ready
wait_healthy 2 searcher-replica
locked_down
add "${scenes[0]}"
images=$((images + 1))
kill_writer() { docker kill "$("${compose[@]}" ps -q searcher)" >/dev/null; sleep 10; }
under_load kill_writer
[ "$(count)" = "$images" ] || { echo "the replicas have $(count) of $images images" >&2; exit 1; }
"${compose[@]}" up -d --no-recreate --scale searcher-replica=2
wait_healthy 1 searcher
add "${scenes[1]}"

say "all proven: $images images"
