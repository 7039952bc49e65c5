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
