# Steps of the suites in the cluster of the virtual machine. Sourced by inside and inside-local.
# shellcheck shell=bash disable=SC2154

step() { # description command...
    local start=$SECONDS
    echo "--- $1"
    "${@:2}"
    echo "--- $1: $((SECONDS - start)) s"
}

# Prints each minute what takes the time, to tell a slow machine from one that waits.
watch() {
    while sleep 60; do
        echo "    load $(cut -d' ' -f1-3 /proc/loadavg), free $(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo) MiB," \
            "busiest: $(ps -eo time,args --sort=-time | sed -n '2,6s/\(.\{48\}\).*/\1/p' | paste -sd';')"
    done
}

expect() { # what wanted found
    [[ $2 == "$3" ]] || die "$1: expected $2, found $3"
    echo "$1: $3"
}

# The state of the nodes is on a plain filesystem, as overlays of containers need one.
disks() {
    fs ext4 8G /mnt/cluster
    fs xfs 2G /mnt/disk
}

cluster() { # nodes
    modprobe -a overlay bridge veth nf_tables nft_chain_nat nft_masq nft_nat nft_ct nft_reject nft_fib br_netfilter \
        nf_conntrack nft_compat xt_conntrack xt_comment xt_MASQUERADE
    "$here/up" --nodes "$1"
}

# Installs the chart, and waits for these objects.
install_chart() { # object... -- [helm-argument...]
    local object objects=()
    while [[ $1 != -- ]]; do objects+=("$1") && shift; done
    helm install orlop "$here/../../charts/orlop" --namespace orlop --create-namespace --values "$suite/values.yaml" \
        --post-renderer "$suite/rare-probes" "${@:2}" >/dev/null
    for object in "${objects[@]}"; do kubectl -n orlop rollout status "$object" --timeout=600s; done
    wait_for 60 'the registration of the local driver' is_registered orlop-1 dir.orlop.dev
}

is_registered() { [[ " $(kubectl get csinode "$1" -o jsonpath='{.spec.drivers[*].name}') " == *" $2 "* ]]; } # node driver

# The size of an xfs volume is a quota.
sizes_hold_on_xfs() {
    claim limited orlop ReadWriteOnce 64Mi
    pod limited limited orlop-1
    ready limited
    expect 'KiB that df shows' 65536 "$(size_in_pod limited)"
    in_pod limited 'dd if=/dev/zero of=/data/fill bs=1M 2>&1 || true' | grep 'No space left on device'
    expand limited 128Mi
    wait_for 60 'the larger volume' shows_size limited 131072
    in_pod limited 'dd if=/dev/zero of=/data/more bs=1M count=32 2>&1 && sync'
}

# The left file counts one ahead of the right one, in one pod.
a_group_snapshot() {
    local uid counts name
    claim left orlop ReadWriteOnce 16Mi '' pair
    claim right orlop ReadWriteOnce 16Mi '' pair
    counter counting left right orlop-1
    ready counting
    wait_for 120 'lines in both volumes' has_lines counting /right/log 20
    group_class orlop-group
    group_snapshot both orlop-group pair
    wait_for 240 'the group snapshot' is_ready_group both
    uid=$(kubectl get volumegroupsnapshot both -o jsonpath='{.metadata.uid}')
    wait_for 240 'both snapshots' are_ready_members "$uid" 2
    for name in left right; do
        claim "restored-$name" orlop ReadWriteOnce 16Mi "$(member_of "$uid" "$name")"
        pod "restored-$name" "restored-$name" orlop-1
    done
    ready restored-left restored-right
    counts="$(lines restored-left /data/log) $(lines restored-right /data/log)"
    expect "left is at most one line ahead: $counts" yes "$(awk '{ print $1 - $2 == 0 || $1 - $2 == 1 ? "yes" : "no" }' <<<"$counts")"
    kubectl delete volumegroupsnapshot both --timeout=600s >/dev/null
    wait_for 240 'no snapshots of the group' are_ready_members "$uid" 0
    expect 'snapshots of the group in the pool' 0 "$(find /mnt/disk/snapshots -mindepth 1 -maxdepth 1 -name "groupsnapshot-$uid*" | wc -l)"
}
