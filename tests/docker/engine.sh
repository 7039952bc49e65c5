# shellcheck shell=bash
# Docker, Podman and orlop for the suite. Everything is in $work, and in the namespaces of the suite.
PATH=${DOCKER_BIN_DIR:+$DOCKER_BIN_DIR:}/usr/sbin:/usr/bin:/sbin:/bin
orlop_bin=${ORLOP_BIN:-${CARGO_TARGET_DIR:-$top/target}/debug/orlop}
export DOCKER_HOST=unix://$work/docker.sock DOCKER_CONFIG=$work/config
dockerd= orlop= # process ids

fail() {
    echo "FAILED: $*"
    exit 1
}

# Polls a command until it succeeds.
within() { # seconds command...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || fail "not in time: $*"
        sleep 0.1
    done
}

start_orlop() {
    : >"$work/orlop.log"
    "$orlop_bin" serve --pool "default=$work/pool" --docker unix:///run/docker/plugins/orlop.sock \
        --docker-mounts "$work/mounts" --known-pools "$work/known-pools" --docker-shares "$work/shares" --node-id docker --log debug \
        2>>"$work/orlop.log" &
    orlop=$!
    within 120 grep -q 'serving volumes to Docker' "$work/orlop.log"
}

# The socket of a killed process stays: engines then wait for it.
kill_orlop() {
    kill -9 "$orlop"
    wait "$orlop" 2>/dev/null || true
}

# Starts the engine and does not wait for it.
launch_docker() { # dockerd flag...
    rm -f "$work/docker.pid"
    dockerd --data-root "$work/docker" --exec-root "$work/exec" --pidfile "$work/docker.pid" --host "$DOCKER_HOST" \
        --bridge none --iptables=false --ip6tables=false --cgroup-parent "$cgroup" "$@" >>"$work/dockerd.log" 2>&1 &
    dockerd=$!
}

start_docker() { # dockerd flag...
    launch_docker "$@"
    within 120 timeout 10 docker version
}

kill_docker() {
    kill -9 "$dockerd"
    wait "$dockerd" 2>/dev/null || true
}

# Stops the engine, which stops its containers first.
stop_docker() {
    kill "$dockerd"
    wait "$dockerd" || true
}

podman() {
    [[ $1 != run ]] || set -- run --cgroup-parent "$cgroup" "${@:2}"
    env -u DOCKER_CONFIG CONTAINERS_CONF="$work/containers.conf" /usr/bin/podman --root "$work/podman" \
        --runroot "$work/podman-run" "$@"
}

# The programs for the commands of a page: those of the suite, whose engines have no network.
make_programs_of_pages() {
    mkdir "$work/page"
    ln -s "$orlop_bin" "$work/page/orlop"
    cat >"$work/page/docker" <<END
#!/usr/bin/env bash
[[ \$1 != run ]] || set -- run --network none "\${@:2}"
exec '$(type -P docker)' "\$@"
END
    cat >"$work/page/podman" <<END
#!/usr/bin/env bash
[[ \$1 != run ]] || set -- run --network none --cgroup-parent '$cgroup' "\${@:2}"
CONTAINERS_CONF='$work/containers.conf' exec env -u DOCKER_CONFIG /usr/bin/podman --root '$work/podman' \
    --runroot '$work/podman-run' "\$@"
END
    chmod +x "$work/page"/{docker,podman}
}

# Podman lists its plugins in its configuration, with the lines of docs/podman.md. Without systemd, its defaults for cgroups and
# events do not work.
configure_podman() {
    local engine='runtime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"'
    {
        printf '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
        sed -n 's/^    //p' "$top/docs/podman.md" | sed -n '/^\[engine]$/,/^orlop = /p' | sed "s/^\[engine]$/&\n$engine/"
    } >"$work/containers.conf"
    grep -q '^orlop = "/run/docker/plugins/orlop.sock"$' "$work/containers.conf" || fail 'docs/podman.md has no configuration'
}

# Makes the image `busybox` from the static busybox of this machine. No registry is needed.
make_image() { # command that imports it...
    local root=$work/image applet
    if [[ ! -d $root ]]; then
        mkdir -p "$root"/{bin,etc,tmp,seed}
        cp /usr/bin/busybox "$root/bin/busybox"
        for applet in $(busybox --list); do
            [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
        done
        echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
        echo 'from the image' >"$root/seed/hello"
    fi
    tar -C "$root" --owner=0 --group=0 --numeric-owner -c . |
        "$@" import --change 'CMD ["/bin/sh"]' --change 'ENV PATH=/bin' - busybox >/dev/null
}
