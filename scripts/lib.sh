# Sourced by the scripts beside it: one way to say what is going on.
# shellcheck shell=sh

say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# quietly LOG COMMAND...: the command's output goes to LOG; shown only when it fails.
quietly() {
    _log=$1
    shift
    "$@" >"$_log" 2>&1 </dev/null || {
        cat "$_log" >&2
        die "failed: $*"
    }
}
