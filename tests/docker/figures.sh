# shellcheck shell=bash
# Figures, each with its bar. Those of memory hold for the static release binary only, and are printed for any other.

# Milliseconds that `docker volume ls` of 10 000 volumes may take.
ls_bar=300
# Resident memory in kB.
memory_bar=8192

# The median of nine runs of a command, in tenths of a millisecond.
median() { # command...
    local run start
    for run in {1..9}; do
        start=$(date +%s%N)
        "$@" "$run" >/dev/null || exit
        echo $((($(date +%s%N) - start) / 100000))
    done | sort -n | sed -n 5p
}
shown() { echo "$(($1 / 10)).$(($1 % 10)) ms"; } # tenths of a millisecond

create_local() { docker volume create "figure-local-$1"; }
create_orlop() { docker volume create -d orlop "figure-orlop-$1"; }
list() { docker volume ls -q; }
lists_10000() { [[ $(list | wc -l) == 10000 ]]; }
remove_figures() { docker volume ls -q | grep '^figure-' | xargs docker volume rm >/dev/null; }

# On a busy machine, a comparison may fail by chance: it is made twice at most.
twice() { # command
    "$1" || { echo 'figures: not within the bar; once more' && "$1"; } || fail "figures: $1"
}

create_is_fast() {
    local own other
    own=$(median create_orlop) other=$(median create_local)
    remove_figures
    echo "figures: docker volume create, median of nine: orlop $(shown "$own"), local $(shown "$other") (bar: 1.5 times that)"
    ((own > 0 && own * 2 <= other * 3))
}

ls_is_fast() {
    local listed
    listed=$(median list)
    echo "figures: docker volume ls of 10000 volumes, median of nine: $(shown "$listed") (bar: $ls_bar ms)"
    ((listed > 0 && listed <= ls_bar * 10))
}

is_static() { ldd "$orlop_bin" 2>&1 | grep -q 'statically linked\|not a dynamic executable'; }
resident() { sed -n "s/^$1:[^0-9]*\([0-9]*\) kB/\1/p" "/proc/$orlop/status"; } # VmRSS|VmHWM

# The resident memory of now, when no call runs, and the highest since the last time, see clear_refs in proc(5).
memory_fits() { # when [VmHWM]
    local now most bar="bar: $memory_bar kB${2:+ for both}"
    sleep 0.1
    now=$(resident VmRSS) most=$(resident VmHWM)
    is_static || bar='the bar is one of the static release binary: make test-docker-figures'
    echo "figures: resident memory $1: $now kB, at most $most kB ($bar)"
    ! is_static || (($(resident "${2:-VmRSS}") <= memory_bar)) || fail "figures: resident memory $1"
    echo 5 >"/proc/$orlop/clear_refs"
}

# Each command makes at least one call.
call_all() { # name
    docker volume create -d orlop "$1"
    run -v "$1:/x" busybox true
    docker volume inspect "$1"
    docker volume ls -q
    docker volume rm "$1"
}

make_10000_volumes() {
    "$orlop_bin" create figure --pool "default=$work/pool" >/dev/null
    python3 - "$work/pool/volumes" <<'END'
import os, sys
os.chdir(sys.argv[1])
record = open("figure/volume.json").read()
for number in range(9999):
    name = f"figure-{number}"
    os.makedirs(f"{name}/data")
    with open(f"{name}/volume.json", "w") as file:
        file.write(record.replace('"figure"', f'"{name}"').replace("default/figure", f"default/{name}"))
END
    within 120 lists_10000
}

# The last case: it leaves 10 000 volumes to the end of the suite.
case_figures() {
    memory_fits 'at first' VmHWM
    twice create_is_fast
    local number
    for number in {1..40}; do call_all "figure-$number" >/dev/null; done
    memory_fits 'after some hundred calls' VmHWM
    make_10000_volumes
    twice ls_is_fast
    memory_fits 'with 10000 volumes'
}
