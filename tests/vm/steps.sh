# Functions of the suites inside the virtual machine. Sourced, not run.
# shellcheck shell=bash

step() { # description command...
    local start=$SECONDS
    echo "--- $1"
    "${@:2}"
    echo "--- $1: $((SECONDS - start)) s"
}

filesystems() {
    fs xfs 1G /mnt/xfs
    fs ext4 1G /mnt/ext4
}

# Runs csi-sanity in a pool on each of these filesystems, which are new ones, at the same time: it uses one processor.
sanity() { # filesystem...
    local filesystem failed=0
    local -A runs=()
    for filesystem in "$@"; do
        "$(dirname "$0")/../sanity/run" "$filesystem" >"/run/sanity-$filesystem" 2>&1 &
        runs[$filesystem]=$!
    done
    for filesystem in "$@"; do
        wait "${runs[$filesystem]}" || failed=1
        sed "s/^/$filesystem: /" "/run/sanity-$filesystem"
    done
    return $failed
}

network() {
    nfs-server up /mnt/xfs
    host add a 11
    host add b 12
}

# Runs tests whose pools and temporary directories are all on a filesystem with project quotas.
on_filesystem() { # filesystem binary [filter...]
    local directory
    for directory in /tmp /dev/shm; do
        mkdir -p "/mnt/$1$directory"
        chmod 1777 "/mnt/$1$directory"
        mount --bind "/mnt/$1$directory" "$directory"
    done
    "${@:2}"
    umount --lazy /tmp /dev/shm
}
