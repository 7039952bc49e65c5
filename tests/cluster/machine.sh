# Saves and restores the settings of the machine that the cluster changes outside its namespaces.
# shellcheck shell=bash disable=SC2154

# Every kubelet sets these sysctls, which are not namespaced.
kubelet_sysctls=(vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops
    kernel.keys.root_maxkeys kernel.keys.root_maxbytes)

# Saves the settings in the state directory.
save_machine_settings() {
    local dir saved=$ORLOP_CLUSTER/machine root=/sys/fs/cgroup
    mkdir -p "$saved"
    sysctl "${kubelet_sysctls[@]}" >"$saved/sysctl"
    [[ ! -f $root/cgroup.subtree_control ]] || cat $root/cgroup.subtree_control >"$saved/subtree_control"
    for dir in "${private_dirs[@]}"; do
        [[ -d /var/lib/$dir ]] || echo "/var/lib/$dir" >>"$saved/created-dirs"
    done
}

# Restores the saved settings. Also works after an `up` or `down` that did not complete.
restore_machine_settings() {
    local dir controller saved=$ORLOP_CLUSTER/machine root=/sys/fs/cgroup
    ip link del orlop0 2>/dev/null || true
    remove_cgroups orlop
    [[ ! -f $saved/sysctl ]] || sysctl -qp "$saved/sysctl"
    if [[ -f $saved/subtree_control ]]; then
        for controller in $(<$root/cgroup.subtree_control); do
            grep -qw "$controller" "$saved/subtree_control" || echo "-$controller" >$root/cgroup.subtree_control
        done
    fi
    if [[ -f $saved/created-dirs ]]; then
        while read -r dir; do rmdir --ignore-fail-on-non-empty "$dir"; done <"$saved/created-dirs"
    fi
}

# Stops all nodes and removes the state.
delete_cluster() {
    local name
    for name in $(nodes); do kill_node "$name"; done
    restore_machine_settings
    rm -rf --one-file-system "$ORLOP_CLUSTER"
}
