#!/bin/sh
# What the tests use in addition to Python packages: a browser, the font that training draws with, buf for
# the contract, TypeScript for the types of the page's scripts.
# haproxy and prometheus, which some tests of the deployment use, are not among them: their Debian packages start
# daemons. Installed where we may; a test that misses its tool says so and is skipped.
set -u

missing=""
command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
[ -e /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf ] || missing="$missing fonts-noto-color-emoji"
[ -d /usr/share/unicode/cldr ] || missing="$missing unicode-cldr-core"

if [ -n "$missing" ]; then
    if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
    else
        echo "for all tests, install these Debian packages:$missing" >&2
    fi
fi

if command -v npm >/dev/null 2>&1; then
    command -v buf >/dev/null 2>&1 ||
        npm install --global --silent @bufbuild/buf@1 || echo "without buf the contract's style is not tested" >&2
    command -v tsc >/dev/null 2>&1 ||
        npm install --global --silent typescript@5 || echo "without tsc the page's types are not checked" >&2
fi
exit 0
