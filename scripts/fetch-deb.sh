#!/bin/sh
# fetch-deb.sh [--with-dependencies] SUITE PACKAGE DEST: unpack a package of another Debian suite below DEST, without installing it.
#
# Uses an apt state of its own in DEST.apt while it runs: neither the machine's package lists nor its dpkg database change. The
# mirrors, proxies and certificates are the machine's own; the suite's signature is checked with Debian's archive keyring.
# Its dependencies (down to the C library, but nothing recommended) come along only if asked for. DEST/.package records what is there; with the same suite and package a second run does nothing.
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

KEYRING=${KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}

fetch_packages() { isolated download "$package"; }
if [ "${1:-}" = --with-dependencies ]; then
    shift
    # in apt's eyes nothing is installed, so what it would install is all that the package needs
    fetch_packages() {
        isolated install --download-only -y --no-install-recommends "$package" && mv "$state"/cache/archives/*.deb .
    }
fi
[ $# = 3 ] || die "usage: fetch-deb.sh [--with-dependencies] SUITE PACKAGE DEST"
suite=$1 package=$2 dest=$3
case $suite$package in *[!a-z0-9.+-]*) die "not a suite and a package: $suite $package" ;; esac

record=$dest/.package
if [ -f "$record" ] && grep -q "^$package .* $suite\$" "$record"; then
    exit 0
fi
[ -r "$KEYRING" ] || die "no Debian archive keyring at $KEYRING (package debian-archive-keyring)"

mkdir -p "$(dirname "$dest")"
dest=$(realpath "$dest")
state=$dest.apt
rm -rf "$state"
mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/parts" "$state/download"
trap 'rm -rf "$state"' EXIT
: >"$state/status"

# apt reads the machine's configuration first (proxies, certificates), then this. Hooks are dropped: they act on the machine.
cat >"$state/apt.conf" <<CONF
Dir::State "$state";
Dir::State::lists "$state/lists";
Dir::State::status "$state/status";
Dir::State::extended_states "$state/extended_states";
Dir::Cache "$state/cache";
Dir::Cache::archives "$state/cache/archives";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$state/parts";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "/dev/null";
APT::Default-Release "";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Update::Pre-Invoke;
CONF

isolated() { apt-get -q -c "$state/apt.conf" "$@"; }

# Where the machine gets this Debian release from, as apt itself understands its sources (both formats).
. /etc/os-release
# shellcheck disable=SC2016 # the names are apt's
uris=$(apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v release="${VERSION_CODENAME:-stable}" '($2 == release || $2 == "stable" || $2 == "oldstable") && $3 == "main" && !seen[$1]++ { print $1 }')
[ -n "$uris" ] || die "apt's sources name no mirror of Debian ${VERSION_CODENAME:-}: cannot tell where to fetch $suite from"

fetch() {
    cat >"$state/parts/suite.sources" <<SOURCES
Types: deb
URIs: $1
Suites: $suite
Components: main
Signed-By: $KEYRING
Targets: Packages
SOURCES
    # update alone succeeds with a warning when a mirror fails; the download then has nothing to fetch
    isolated update && (cd "$state/download" && fetch_packages)
}

for uri in $uris; do
    say "package list of Debian $suite"
    if fetch "$uri" >"$state/log" 2>&1 </dev/null; then
        break
    fi
done
set -- "$state/download/$package"_*.deb
[ -f "$1" ] || {
    cat "$state/log" >&2
    die "no mirror of this machine gave $package of $suite"
}

version=$(dpkg-deb -f "$1" Version)
say "unpacking $package $version"
rm -rf "$dest"
mkdir "$dest"
for deb in "$state"/download/*.deb; do
    dpkg-deb -x "$deb" "$dest"
done
printf '%s %s %s %s\n' "$package" "$version" "$(dpkg-deb -f "$1" Architecture)" "$suite" >"$record"
