# What the cluster changes on the machine outside its namespaces, noted by up and set back by down.
# shellcheck shell=bash disable=SC2154

# Not per namespace, and set by every kubelet.
kubelet_sysctls=(vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops
    kernel.keys.root_maxkeys kernel.keys.root_maxbytes)

note_machine() {
    local folder note=$ORLOP_CLUSTER/machine root=/sys/fs/cgroup
    mkdir -p "$note"
    sysctl "${kubelet_sysctls[@]}" >"$note/sysctl"
    [[ ! -f $root/cgroup.subtree_control ]] || cat $root/cgroup.subtree_control >"$note/subtree_control"
    for folder in "${own_folders[@]}"; do
        [[ -d /var/lib/$folder ]] || echo "/var/lib/$folder" >>"$note/folders"
    done
}

# Does what is left to do, however far `up` or an earlier `down` came.
set_back_machine() {
    local folder controller note=$ORLOP_CLUSTER/machine root=/sys/fs/cgroup
    ip link del orlop0 2>/dev/null || true
    remove_cgroups orlop
    [[ ! -f $note/sysctl ]] || sysctl -qp "$note/sysctl"
    if [[ -f $note/subtree_control ]]; then
        for controller in $(<$root/cgroup.subtree_control); do
            grep -qw "$controller" "$note/subtree_control" || echo "-$controller" >$root/cgroup.subtree_control
        done
    fi
    if [[ -f $note/folders ]]; then
        while read -r folder; do rmdir --ignore-fail-on-non-empty "$folder"; done <"$note/folders"
    fi
}

# Ends all nodes and removes the state.
end_cluster() {
    local name
    for name in $(nodes); do kill_node "$name"; done
    set_back_machine
    rm -rf --one-file-system "$ORLOP_CLUSTER"
}
