# shellcheck shell=bash
# Podman: the life of volumes on its own driver and on orlop, what it shares with Docker, and its calls.

case_podman_local() {
    make_image podman
    life podman local
}

case_podman() {
    make_image podman
    podman_page
    life podman orlop
    shared_with_docker
    podman_calls
    same 'nothing is left' '' "$("$orlop_bin" ls -q --pool "default=$work/pool")"
}

# The commands of docs/podman.md succeed.
podman_page() {
    local script
    script=$(sed -n '/^## /q; s/^    podman/podman/p' "$top/docs/podman.md")
    (($(wc -l <<<"$script") > 2)) || fail 'docs/podman.md has no commands'
    of_page "$script" >/dev/null
}

reloaded() { podman volume reload && [[ $(podman volume ls -q) == "$1" ]]; } # volume

# One volume in both engines, over a restart of orlop.
shared_with_docker() {
    local container
    same create pod "$(podman volume create --driver orlop -o size=1g pod)"
    podman run --rm --network none -v pod:/data busybox sh -c 'echo hello >/data/file'
    same 'shared with Docker' hello "$(run --volume-driver orlop -v pod:/data busybox cat /data/file)"
    container=$(podman run -d --network none -v pod:/data busybox sleep 1000000)
    kill_orlop
    start_orlop
    same 'a second container after a restart' hello "$(podman run --rm --network none -v pod:/data busybox cat /data/file)"
    refused 'is in use by' docker volume rm pod
    podman rm -f -t 0 "$container" >/dev/null
    podman volume rm pod >/dev/null
    "$orlop_bin" create found --pool "default=$work/pool" >/dev/null
    # On a busy machine, the first listing may still be the last one.
    within 60 reloaded found
    podman volume rm found >/dev/null
}

# The calls of moby's cases, where Podman has the verb. It mounts a volume once for all its containers.
podman_calls() {
    local container mark
    mark=$(wc -l <"$work/orlop.log")
    podman volume create --driver orlop one >/dev/null
    called 'create' Create=1 Mount=0
    podman run --rm --network none -v one:/x busybox true
    called 'Named' Create=0 Mount=1 Unmount=1 Remove=0
    container=$(podman run -d --network none -v one:/x busybox sleep 1000000)
    podman run --rm --network none --volumes-from "$container" busybox touch /x/file
    podman cp "$container:/x/file" "$work/copied"
    called 'VolumesFrom and UnmountOnCp' Create=0 Mount=1 Unmount=0
    podman rm -f -t 0 "$container" >/dev/null
    called 'DeleteContainer' Unmount=1 Remove=0
    podman volume ls >/dev/null
    called 'List and PathCalls' Path=0 Mount=0
    podman volume rm one >/dev/null
    called 'the removal' Remove=1
    podman volume create --driver orlop -o type=nfs -o o=addr=127.0.0.1,port=1 -o device=:/x share >/dev/null
    refused share podman run --rm --network none -v share:/x busybox true
    called 'UnmountOnMountFail' Mount=1 Unmount=0
    podman volume rm share >/dev/null
}
