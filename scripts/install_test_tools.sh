#!/bin/sh
# What the tests use in addition to Python packages: two browsers, the font that training draws with, what checks the
# deployment (promtool, HAProxy, docker-compose), buf for the contract, TypeScript for the types of the page's scripts and
# for the example of a client.
# Installed where we may; a test that misses its tool says so and is skipped.
set -u

has() { PATH=$PATH:/usr/sbin command -v "$1" >/dev/null 2>&1; }

install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null; }

# For packages of which only the programs are wanted: their daemons start neither now nor at the next boot.
install_without_daemons() {
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f $policy' EXIT
        printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
    fi
    install --no-install-recommends "$@"
    for package; do update-rc.d "$package" disable 2>/dev/null; done
}

missing=""
has chromium || missing="$missing chromium"
has firefox-esr || missing="$missing firefox-esr"
[ -e /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf ] || missing="$missing fonts-noto-color-emoji"
[ -d /usr/share/unicode/cldr ] || missing="$missing unicode-cldr-core"
programs=""
has promtool || programs="$programs prometheus"
has haproxy || programs="$programs haproxy"
has docker-compose || programs="$programs docker-compose"

if [ -n "$missing$programs" ]; then
    if has apt-get && [ "$(id -u)" = 0 ]; then
        apt-get update -qq
        [ -z "$missing" ] || install $missing
        [ -z "$programs" ] || install_without_daemons $programs
    else
        echo "for all tests, install these Debian packages:$missing$programs" >&2
    fi
fi

if has npm; then
    has buf ||
        npm install --global --silent @bufbuild/buf@1 || echo "without buf the contract's style is not tested" >&2
    has tsc ||
        npm install --global --silent typescript@5 || echo "without tsc the page's types are not checked" >&2
    [ -d "$(npm root --global)/puppeteer-core" ] ||
        npm install --global --silent puppeteer-core@24 || echo "without puppeteer-core Firefox is not tested" >&2
    has protoc-gen-es ||
        npm install --global --silent @bufbuild/protoc-gen-es@2 @bufbuild/protobuf@2 @connectrpc/connect@2 \
            @connectrpc/connect-node@2 @types/node@20 || echo "without protoc-gen-es the client in TypeScript is not tested" >&2
fi
exit 0
