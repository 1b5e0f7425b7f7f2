#!/bin/sh
# fetch.sh SUITE DEST PACKAGE...: the newest packages of a Debian suite and its security updates, as .deb files in DEST.
#
# Nothing is installed and nothing but DEST and DEST.apt (while it runs) is written: apt works on a state of its own. Mirrors,
# proxies and certificates are the machine's own; signatures are checked with Debian's archive keyring. Dependencies are not
# followed: the recipe names every package, and the build checks that nothing is missing. "depends:NAME" stands for the package that
# the metapackage NAME depends on (the newest kernel of its kind).
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../scripts/lib.sh"

KEYRING=${KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}

[ $# -ge 3 ] || die "usage: fetch.sh SUITE DEST PACKAGE..."
suite=$1 dest=$2
shift 2
for name in "$suite" "$@"; do
    case ${name#depends:} in '' | *[!a-z0-9.+-]*) die "not the name of a suite or a package: $name" ;; esac
done
[ -r "$KEYRING" ] || die "no Debian archive keyring at $KEYRING (package debian-archive-keyring)"

mkdir -p "$dest"
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

# Where the machine gets its own Debian release and its security updates from, as apt itself understands its sources; the wanted
# suite is expected at the same places. The kernel's fixes come through the security archive, so both are needed.
. /etc/os-release
release=${VERSION_CODENAME:-stable}
# shellcheck disable=SC2016 # the names are apt's
apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v release="$release" -v suite="$suite" '
        $3 != "main" { next }
        $2 == release || $2 == "stable" || $2 == "oldstable" { wanted = suite }
        $2 ~ /-security$/ { wanted = suite "-security" }
        wanted && !seen[$1 wanted]++ { print $1, wanted }
        { wanted = "" }' >"$state/mirrors"
[ -s "$state/mirrors" ] || die "apt's sources name no mirror of Debian $release: cannot tell where to fetch $suite from"
while read -r uri of; do
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\nTargets: Packages\n\n' "$uri" "$of" "$KEYRING"
done <"$state/mirrors" >"$state/parts/guest.sources"

say "package lists of Debian $suite"
quietly "$state/log" isolated update
names=
for name in "$@"; do
    case $name in
        depends:*)
            meta=${name#depends:}
            name=$(apt-cache -c "$state/apt.conf" depends "$meta" | awk '$1 == "Depends:" { print $2; exit }')
            [ -n "$name" ] || die "$suite has no package $meta, or it depends on nothing"
            ;;
    esac
    names="$names $name"
done
say "downloading $# packages"
cd "$state/download"
# shellcheck disable=SC2086 # a list of names
quietly "$state/log" isolated download $names
rm -rf "$dest"
mv "$state/download" "$dest"
