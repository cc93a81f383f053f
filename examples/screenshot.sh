#!/bin/sh
# Photographs a page, for the docs: examples/screenshot.sh build/demo/report.html docs/report.png [WIDTH [HEIGHT]]. Needs Chromium.
set -eu
page=$(realpath "$1") picture=$(realpath -m "$2") profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-background-networking --disable-component-update \
    --disable-sync --disable-quic --user-data-dir="$profile" --window-size="${3:-1100},${4:-1500}" --screenshot="$picture" "file://$page" 2>/dev/null
test -s "$picture"
