# Functions and variables shared by the scripts in this directory that run on the host. Sourced, not run.
# shellcheck shell=bash disable=SC2034

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
ORLOP_TOOLS=${ORLOP_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/orlop-tools}
vm=$ORLOP_TOOLS/vm
export PATH=$PATH:/usr/sbin:/sbin

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Prints the current time in seconds.
now() { date +%s.%N; }

# Prints the seconds since a time printed by now: since TIME
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }
