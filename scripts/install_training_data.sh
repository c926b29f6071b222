#!/bin/sh
# What training draws with in addition to the Python packages: icon sets (npm), clip art and wallpapers (Debian), and the
# program that rasterises vectors. Licences: training/icon_sets.py and models/pocket/README.md. Nothing of it is committed.
set -eu

cd "$(dirname "$0")/.."
packages="openclipart-png lomiri-wallpapers plasma-workspace-wallpapers librsvg2-bin"
if ! dpkg -s $packages >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    else
        echo "install these Debian packages first: $packages" >&2
        exit 1
    fi
fi

fetch() { # the folder's name is the package's, with - for /
    folder="training/out/icon-sets/$(echo "${1%@*}" | tr -d @ | tr / -)"
    [ -d "$folder" ] && return
    work=$(mktemp -d)
    (cd "$work" && npm pack --silent "$1" >/dev/null && tar xzf ./*.tgz)
    mkdir -p "$(dirname "$folder")"
    mv "$work/package" "$folder"
    rm -r "$work"
}

fetch @lobehub/fluent-emoji-3d@1.1.0
fetch @iconify-json/fluent-emoji@1.2.7
fetch @iconify-json/fluent-emoji-flat@1.2.6
fetch @iconify-json/twemoji@1.2.5
fetch @iconify-json/noto-v1@1.2.5
fetch @iconify-json/fxemoji@1.2.2
fetch @iconify-json/emojione@1.2.3
