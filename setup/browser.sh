#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
# A browser and what drives it, for the tests of the rendered book.
#   browser.sh ok [long]      is it there, or is nothing to be done about it
#   browser.sh build [long]   bring it
#   browser.sh show           two lines, the browser and the folder of what drives it,
#                             or one on stderr that says why there is none
# An ordinary run does without it where it does not come by itself: the tests
# that want it are skipped and say why. The long tests insist.
set -euo pipefail
. "$(dirname "$0")/env.sh"
. "$(dirname "$0")/lib.sh"

long=${2:-}
from=$LGUEST_ROOT/tests/browser
entry=$LGUEST_CACHE/browser/$(sha256sum < "$from/package-lock.json" | cut -c 1-12)
# Why it did not come the last time, which is not tried again before the long tests ask for it.
given_up=$entry.given-up
# What drives it asks for this Node.js.
node_least=20

find_browser() {
    local name
    for name in ${CHROMIUM:+"$CHROMIUM"} chromium chromium-browser google-chrome google-chrome-stable; do
        command -v "$name" && return 0
    done
    return 1
}
find_node() {
    local version
    version=$(node --version 2>/dev/null) && version=${version#v} && [ "${version%%.*}" -ge "$node_least" ]
}
driver_ok() {
    [ -s "$entry/.listing" ] &&
        listing "$entry" | cmp -s - "$entry/.listing"
}
# What reads a PDF. Only the long tests print one.
find_reader() { [ -z "$long" ] || command -v pdftotext >/dev/null; }
all_there() { find_browser >/dev/null && find_node && driver_ok && find_reader; }

# Is it there, or a thing for the long tests?
ok() { all_there || { [ -z "$long" ] && [ -s "$given_up" ]; }; }

why() {
    if ! find_browser >/dev/null; then echo 'there is no chromium'
    elif ! find_node; then echo "there is no Node.js of version $node_least or newer"
    elif ! driver_ok; then echo 'playwright-core and axe have not been fetched'
    elif ! find_reader; then echo 'there is no pdftotext'
    fi
}

# Without being asked, only where nobody has to be: as root, on Debian or Ubuntu.
packages() {
    local packages=()
    find_browser >/dev/null || packages+=(chromium)
    command -v node >/dev/null || packages+=(nodejs)
    command -v npm >/dev/null || packages+=(npm)
    find_reader || packages+=(poppler-utils)
    [ ${#packages[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "missing: ${packages[*]}. To have them: $("$LGUEST_ROOT/setup/packages.sh" mend "${packages[@]}")"
        return 1
    fi
    mkdir -p "$LGUEST_CACHE/log"
    { apt-get update -qq || true
      DEBIAN_FRONTEND=noninteractive apt-get install -y --no-remove --no-install-recommends \
        "${packages[@]}"; } > "$LGUEST_CACHE/log/browser.log" 2>&1 && return 0
    echo "apt-get could not install ${packages[*]}; what it said is in $LGUEST_CACHE/log/browser.log"
    return 1
}

driver() {
    driver_ok && return 0
    rm -rf "$entry" "$entry.new"
    mkdir -p "$entry.new" "$LGUEST_CACHE/log"
    cp "$from/package.json" "$from/package-lock.json" "$entry.new"
    if ! (cd "$entry.new" && npm ci --ignore-scripts --no-audit --no-fund) \
        > "$LGUEST_CACHE/log/browser-npm.log" 2>&1; then
        echo "npm could not fetch playwright-core and axe; what it said is in $LGUEST_CACHE/log/browser-npm.log"
        return 1
    fi
    listing "$entry.new" > "$entry.new/.listing"
    mv "$entry.new" "$entry"
}

build() {
    local reason
    all_there && return
    mkdir -p "$LGUEST_CACHE/browser"
    rm -f "$given_up"
    if reason=$(packages) && reason=$(driver); then
        all_there && return
        reason=$(why)
    fi
    [ -z "$long" ] || die "the long tests look at the book in a browser. $reason"
    note "going on without a browser: $reason"
    printf '%s\n' "$reason" > "$given_up"
}

show() {
    if all_there; then
        find_browser
        echo "$entry"
    else
        say "$(why); $([ -s "$given_up" ] && cat "$given_up" || echo 'make setup-long brings it')"
        return 1
    fi
}

case ${1:-} in
    ok|show) "$1" ;;
    build) with_lock browser build ;;
    *) die 'usage: browser.sh ok|build [long], show' ;;
esac
