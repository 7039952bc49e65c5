# shellcheck shell=bash
# The calls that an engine makes, as moby's tests of volume plugins count them. The log of orlop has a line for each.

# Compares the numbers of calls since the last time.
called() { # what CALL=NUMBER...
    local what=$1 pair
    shift
    within 60 log_is_written
    for pair in "$@"; do (within 60 equals "${pair#*=}" calls "${pair%=*}") || fail "after $what"; done
    mark=$(wc -l <"$work/orlop.log")
}
# orlop writes its log in batches: what is missing here would be counted after the next mark.
log_is_written() {
    local lines
    lines=$(wc -l <"$work/orlop.log")
    sleep 0.1
    [[ $lines == "$(wc -l <"$work/orlop.log")" ]]
}
calls() { tail -n "+$((mark + 1))" "$work/orlop.log" | grep -c "method=\"/[A-Za-z]*\.$1\".*: call finished"; }

# The cases of moby's DockerExternalVolumeSuite; each text begins with the name of its case.
case_calls() {
    local mark=0
    kill_docker
    start_docker --live-restore
    mark=$(wc -l <"$work/orlop.log")
    calls_of_containers
    calls_of_commands
    calls_of_mounts
    removed_behind_docker
    called 'none is repeated' Activate=0 Capabilities=0
    not_blocked_by_orlop
    restarted
    orlop_away
    docker volume rm one two >/dev/null
    called 'PathCalls: none needs the path' Path=0
}

calls_of_containers() {
    run --volume-driver orlop -v named:/x busybox touch /x/file
    called 'Named' Activate=1 Capabilities=1 Create=1 Mount=1 Unmount=1 Remove=0
    docker volume rm named >/dev/null
    called 'Named: its removal' Create=0 Mount=0 Remove=1
    run --volume-driver orlop -v /x busybox true
    called 'Unnamed' Create=1 Mount=1 Unmount=1 Remove=1
    docker run --network none --volume-driver orlop -v /x --name first busybox true
    run --volumes-from first busybox true
    docker rm -fv first >/dev/null
    called 'VolumesFrom' Create=1 Mount=2 Unmount=2 Remove=1
    docker run --network none --volume-driver orlop -v /x --name first busybox true
    docker rm -fv first >/dev/null
    called 'DeleteContainer' Create=1 Mount=1 Unmount=1 Remove=1
}

calls_of_commands() {
    local created
    docker volume create -d orlop one >/dev/null
    docker volume create -d orlop two >/dev/null
    called 'Capabilities: once only' Create=2 Mount=0 Capabilities=0
    same 'Capabilities: the scope' $'one orlop local\ntwo orlop local' "$(docker volume ls --format '{{.Name}} {{.Driver}} {{.Scope}}')"
    called 'List' List=1 Mount=0 Path=0
    created=$(record_field one created)
    same 'Get: when it was made' "${created%.*}Z" "$(docker volume inspect --format '{{.CreatedAt}}' one)"
    called 'Get' Get=1 Path=0
    refused 'must be unique' docker volume create -d local one
    refused 'onflicting options' docker volume create --name three three
    refused 'o such volume' docker volume inspect unknown
    called 'CreateOptionConflict' Create=0 Remove=0
}

calls_of_mounts() {
    local container
    container=$(docker run -d --network none -v one:/x busybox sh -c 'echo hello >/x/file && sleep 1000000')
    within 60 docker exec "$container" grep -q hello /x/file
    same 'BindExternalVolume' 'one orlop' "$(docker inspect --format '{{range .Mounts}}{{.Name}} {{.Driver}}{{end}}' "$container")"
    called 'BindExternalVolume' Create=0 Mount=1 Unmount=0
    same 'MountID' 1 "$(find "$work/mounts/one" -mindepth 1 -regextype egrep -regex '.*/[0-9a-f]{64}' | wc -l)"
    docker cp "$container:/x/file" "$work/copied"
    called 'UnmountOnCp: from it' Mount=1 Unmount=1
    docker cp "$work/copied" "$container:/x/other"
    called 'UnmountOnCp: into it' Mount=2 Unmount=2
    docker rm -f "$container" >/dev/null
    called 'its end' Mount=0 Unmount=1 Remove=0
    same 'MountID: Unmount has the same' '' "$(ls "$work/mounts/one")"
    docker volume create -d orlop -o type=nfs -o o=addr=127.0.0.1,port=1 -o device=:/x share >/dev/null
    refused share run -v share:/x busybox true
    called 'UnmountOnMountFail' Mount=1 Unmount=0
    docker volume rm share >/dev/null
}

# OutOfBandDelete and GetEmptyResponse: Docker takes new options, and another driver, for the name of a volume that `orlop rm`
# has removed.
removed_behind_docker() {
    remove_by_command
    refused 'o such volume' docker volume inspect two
    docker volume create -d orlop -o size=1g two >/dev/null
    eventually $((1 << 30)) status_of two size
    remove_by_command
    docker volume create two >/dev/null
    same 'OutOfBandDelete: another driver' local "$(docker volume inspect --format '{{.Driver}}' two)"
    docker volume rm two >/dev/null
    docker volume create -d orlop two >/dev/null
}

remove_by_command() {
    "$orlop_bin" rm two --pool "default=$work/pool" >/dev/null
    within 60 forgotten two
}
forgotten() { ! docker volume inspect "$1"; }

# LookupNotBlocked: a driver that does not respond delays no volume of another one.
not_blocked_by_orlop() {
    local client
    kill -STOP "$orlop"
    docker volume create -d orlop blocked >/dev/null &
    client=$!
    same 'LookupNotBlocked' own "$(timeout 10 docker volume create own)"
    timeout 10 docker run --rm --network none -v own:/x busybox touch /x/file || fail 'LookupNotBlocked: run'
    timeout 10 docker volume rm own >/dev/null || fail 'LookupNotBlocked: rm'
    kill -0 "$client" || fail 'LookupNotBlocked: orlop was not asked'
    kill -CONT "$orlop"
    wait "$client"
    called 'LookupNotBlocked' Create=1
    docker volume rm blocked >/dev/null
}

# WithDaemonRestart: the volume is mounted once for each start of its container, if that ends with the engine.
restarted() {
    local container
    stop_docker
    start_docker
    container=$(docker run -d --network none --restart always -v one:/x busybox sleep 1000000)
    called 'WithDaemonRestart: before' Create=0 Mount=1 Unmount=0
    stop_docker
    called 'WithDaemonRestart: the end of the engine' Mount=0 Unmount=1
    start_docker
    within 60 docker exec "$container" grep -q hello /x/file
    called 'WithDaemonRestart: its start' Create=0 Mount=1 Unmount=0 Remove=0
    same 'WithDaemonRestart' 'one orlop' "$(docker inspect --format '{{range .Mounts}}{{.Name}} {{.Driver}}{{end}}' "$container")"
    docker rm -f "$container" >/dev/null
    called 'WithDaemonRestart: the end of the container' Mount=0 Unmount=1
    # A container that has ended is not mounted at a start of the engine.
    run -v one:/x busybox true
    called 'WithDaemonRestart: a new container' Mount=1 Unmount=1 Create=0
}

# RetryNotImmediatelyExists: Docker waits for a driver that is away for a moment.
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
    called 'RetryNotImmediatelyExists' Mount=1 Unmount=1
}
