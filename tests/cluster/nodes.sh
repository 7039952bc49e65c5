# Starts and kills nodes. Sourced by up, down, node and selftest.
# shellcheck shell=bash disable=SC2034,SC2154

# The host and the nodes share one network. Its bridge is eth0 of the first node; orlop-N has the address N + 1.
network=10.243.0 host_ip=10.243.0.1 api_ip=10.243.0.2
pod_cidr=10.244.0.0/16 service_cidr=10.96.0.0/16 # 10.96.0.1 is the API server
max_nodes=4

# Directories in /var/lib that are private to each node. On the host they serve only as mount points.
private_dirs=(kubelet cni orlop)

ip_of() { echo "$network.$((${1##*-} + 1))"; } # node

# Fixed MAC addresses, so that a node keeps its address when it boots or when a bridge loses a port. Otherwise the other
# nodes would send to the old address for half a minute, until their ARP entries expire.
mac_of() { printf '02:00:0a:f3:00:%02x' "${1##*.}"; } # ip

# Prints the pod CIDR of a node.
pod_cidr_of() { echo "10.244.$((${1##*-} - 1)).0/24"; } # node

# Prints the mount points of the cgroup hierarchies, v1 or v2.
cgroup_roots() { findmnt -rno TARGET -t cgroup,cgroup2 | grep '^/sys/fs/cgroup'; }

# --- network ---

# Runs a command in the network namespace of a node.
in_net() { # node command...
    local pid
    pid=$(node_pid "$1") || die "node $1 is not running: see $(node_dir "$1")/log"
    shift
    nsenter --target "$pid" --net -- "$@"
}

# Connects a network namespace to the bridge of the first node. Deletes the previous link first: after a node was
# killed, the kernel removes its link asynchronously.
connect_to_bridge() { # pid interface ip port
    nsenter --target "$1" --net -- ip link del "$2" 2>/dev/null || true
    in_net "$first_node" ip link del "$4" 2>/dev/null || true
    ip link add "$2" netns "$1" address "$(mac_of "$3")" type veth peer name "$4" netns "$(node_pid "$first_node")"
    in_net "$first_node" ip link set "$4" master eth0 up
}

# Prints routes to the pods of all possible nodes, so that a new node requires no changes on the others.
pod_routes() { # node|host
    local number other
    for ((number = 1; number <= max_nodes; number++)); do
        other=orlop-$number
        [[ $other == "$1" ]] || echo "route replace $(pod_cidr_of "$other") via $(ip_of "$other")"
    done
}

connect_host() {
    connect_to_bridge $$ orlop0 "$host_ip" host
    ip addr add "$host_ip/24" dev orlop0
    ip link set orlop0 up
    { echo "route replace $service_cidr via $api_ip" && pod_routes host; } | ip -batch -
}

connect() { # node
    if [[ $1 == "$first_node" ]]; then
        in_net "$1" ip link add eth0 address "$(mac_of "$api_ip")" type bridge
    else
        connect_to_bridge "$(node_pid "$1")" eth0 "$(ip_of "$1")" "$1"
    fi
    # kube-proxy redirects packets to services only after the kernel has found a route for them.
    {
        echo "link set lo up" # without it the kernel rejects any gateway as invalid
        echo "link set eth0 up"
        pod_routes "$1" | sed "s/$/ dev eth0 onlink/"
        echo "route replace $service_cidr dev eth0"
        echo "addr add $(ip_of "$1")/24 dev eth0" # must be last: node-init waits for it
    } | in_net "$1" ip -batch -
    [[ $1 != "$first_node" ]] || connect_others
}

# Connects the host and the other running nodes when the first node boots. The bridge is in the first node, so their
# links are deleted with it.
connect_others() {
    local name
    connect_host
    for name in $(nodes running); do
        [[ $name == "$first_node" ]] || connect "$name"
    done
}

# --- cgroups ---

# Creates a cgroup in which a kubelet can create its own, and the parents of the cgroup.
make_cgroup() { # root path
    local controller file parent cgroup=$1/$2
    [[ ! -d $cgroup ]] || return 0
    parent=${cgroup%/*}
    [[ $2 != */* ]] || make_cgroup "$1" "${2%/*}"
    # Version 2: the parent must enable the controllers of its children.
    if [[ -f $parent/cgroup.subtree_control ]]; then
        for controller in $(<"$parent/cgroup.controllers"); do
            echo "+$controller" >"$parent/cgroup.subtree_control"
        done
    fi
    mkdir "$cgroup"
    # Version 1: a new cpuset is empty and accepts no processes.
    for file in cpuset.cpus cpuset.mems; do
        [[ -f $cgroup/cgroup.controllers || ! -f $cgroup/$file ]] || cat "$parent/$file" >"$cgroup/$file"
    done
}

make_cgroups() { # node
    local root
    for root in $(cgroup_roots); do make_cgroup "$root" "orlop/$1"; done
}

# Removes cgroups. Retries, because a killed process stays in its cgroup for a moment.
remove_cgroups() { # path
    local root
    for root in $(cgroup_roots); do
        if [[ -d $root/$1 ]]; then wait_for 20 "removal of the cgroup $root/$1" remove_cgroup_tree "$root/$1"; fi
    done
}

remove_cgroup_tree() { find "$1" -depth -type d -exec rmdir {} +; }

# --- lifecycle ---

# Runs a command with only the standard file descriptors. If a node inherited a pipe or lock from the caller of `up`,
# the caller would block until the node exits.
without_inherited_fds() { # command...
    local fd
    for fd in "/proc/$BASHPID/fd"/*; do
        fd=${fd##*/}
        ((fd <= 2)) || eval "exec $fd>&-"
    done
    exec "$@"
}

boot_node() { # node
    local name=$1 dir parent pid
    dir=$(node_dir "$name")
    make_cgroups "$name"
    export name dir first_node api_ip service_cidr kubeconfig pki=$ORLOP_CLUSTER/pki
    node_ip=$(ip_of "$name") private_dirs="${private_dirs[*]}" \
        without_inherited_fds setsid unshare --mount --net --pid --uts --ipc --fork --kill-child --mount-proc \
        "$here/node-init" </dev/null >"$dir/log/node.log" 2>&1 &
    parent=$!
    until pid=$(ps -o pid= --ppid "$parent") && [[ -n $pid ]]; do
        [[ -e /proc/$parent ]] || die "$name did not start: see $dir/log/node.log"
        sleep 0.02
    done
    process_identity "${pid// /}" >"$dir/pid"
    connect "$name"
}

# Prints the loop devices whose backing file is in a private directory of a node. They are not removed with the node.
loop_devices_of() { # node
    local dir pid device number inode file state_number
    dir=$(node_dir "$1") pid=$(node_pid "$1")
    state_number=$(stat -c %Hd:%Ld "$dir")
    losetup --list --noheadings --output NAME,BACK-MAJ:MIN,BACK-INO,BACK-FILE |
        while read -r device number inode file; do
            if [[ $file =~ ^/var/lib/(kubelet|orlop)/ &&
                $(nsenter --target "$pid" --mount stat -c %i "$file" 2>/dev/null) == "$inode" ]] ||
                [[ $number == "$state_number" && $(find "$dir"/{kubelet,orlop} -xdev -inum "$inode") ]]; then
                echo "$device"
            fi
        done
}

# Kills the init process of a node. The kernel then kills all other processes of the node, and removes its mounts and
# network with their namespaces.
kill_node() { # node
    local pid device loop_devices
    if pid=$(node_pid "$1"); then
        mapfile -t loop_devices < <(loop_devices_of "$1")
        kill -KILL "$pid"
        while [[ -e /proc/$pid ]]; do sleep 0.05; done
        for device in "${loop_devices[@]}"; do losetup --detach "$device"; done
    fi
    rm -f "$(node_dir "$1")/pid"
    remove_cgroups "orlop/$1"
}
