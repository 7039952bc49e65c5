# shellcheck shell=bash
# The calls that an engine makes, as moby's tests of volume plugins count them. The log of orlop has a line for each.

# Compares the numbers of calls since the last time.
called() { # what CALL=NUMBER...
    local what=$1 pair
    shift
    for pair in "$@"; do (within 60 equals "${pair#*=}" calls "${pair%=*}") || fail "after $what"; done
    mark=$(wc -l <"$work/orlop.log")
}
calls() { tail -n "+$((mark + 1))" "$work/orlop.log" | grep -c "method=\"/[A-Za-z]*\.$1\".*: call finished"; }

case_calls() {
    local container mark=0
    kill_docker
    start_docker --live-restore
    mark=$(wc -l <"$work/orlop.log")
    run --volume-driver orlop -v named:/x busybox touch /x/file
    called 'a named volume' Activate=1 Capabilities=1 Create=1 Mount=1 Unmount=1 Remove=0
    docker volume rm named >/dev/null
    called 'its removal' Create=0 Mount=0 Remove=1
    run --volume-driver orlop -v /x busybox true
    called 'an anonymous volume' Create=1 Mount=1 Unmount=1 Remove=1
    docker run --network none --volume-driver orlop -v /x --name first busybox true
    run --volumes-from first busybox true
    docker rm -fv first >/dev/null
    called '--volumes-from' Create=1 Mount=2 Unmount=2 Remove=1
    docker volume create -d orlop one >/dev/null
    docker volume create -d orlop two >/dev/null
    called 'two volumes' Create=2 Mount=0
    same ls $'one\ntwo' "$(docker volume ls -q)"
    called ls List=1 Mount=0
    refused 'must be unique' docker volume create -d local one
    refused 'o such volume' docker volume inspect unknown
    called 'what is refused' Create=0 Remove=0
    container=$(docker run -d --network none -v one:/x busybox sh -c 'echo hello >/x/file && sleep 1000000')
    within 60 docker exec "$container" grep -q hello /x/file
    called 'a running container' Create=0 Mount=1 Unmount=0
    docker cp "$container:/x/file" "$work/copied"
    called 'cp from it' Mount=1 Unmount=1
    docker cp "$work/copied" "$container:/x/other"
    called 'cp into it' Mount=2 Unmount=2
    docker rm -f "$container" >/dev/null
    called 'its end' Mount=0 Unmount=1 Remove=0
    docker volume create -d orlop -o type=nfs -o o=addr=127.0.0.1,port=1 -o device=:/x share >/dev/null
    refused share run -v share:/x busybox true
    called 'a mount that fails' Mount=1 Unmount=0
    docker volume rm share >/dev/null
    removed_behind_docker
    called 'none is repeated' Activate=0 Capabilities=0
    orlop_away
    docker volume rm one two >/dev/null
    called 'none needs the path' Path=0
}

# Docker takes new options, and another driver, for the name of a volume that `orlop rm` has removed.
removed_behind_docker() {
    remove_by_command
    docker volume create -d orlop -o size=1g two >/dev/null
    eventually $((1 << 30)) status_of two size
    remove_by_command
    docker volume create two >/dev/null
    same 'another driver' local "$(docker volume inspect --format '{{.Driver}}' two)"
    docker volume rm two >/dev/null
    docker volume create -d orlop two >/dev/null
}

remove_by_command() {
    "$orlop_bin" rm two --pool "default=$work/pool" >/dev/null
    within 60 forgotten two
}
forgotten() { ! docker volume inspect "$1"; }

# Docker waits for a driver that is away for a moment.
orlop_away() {
    local client
    kill_orlop
    : >"$work/dockerd.log"
    run -v one:/x busybox true &
    client=$!
    within 60 grep -q 'Unable to connect to plugin' "$work/dockerd.log"
    start_orlop
    mark=0
    wait "$client"
}
