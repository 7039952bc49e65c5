# What brings nodes to life and ends them. Sourced by up, down and node.
# shellcheck shell=bash disable=SC2034,SC2154

# One network for the host and the nodes: a bridge, eth0 of the first node. orlop-N has the address N + 1.
network=10.243.0 host_ip=10.243.0.1 api_ip=10.243.0.2
all_pods=10.244.0.0/16 services=10.96.0.0/16 # of which 10.96.0.1 is the API server
most_nodes=4

# Of these folders of the host's /var/lib each node has its own; the host's are mount points only.
own_folders=(kubelet cni orlop)

ip_of() { echo "$network.$((${1##*-} + 1))"; }
# Addresses that stay the same when a node boots, or a bridge loses a port: else all others would send to the old
# one until their ARP entry is out of date, for half a minute.
mac_of() { printf '02:00:0a:f3:00:%02x' "${1##*.}"; } # ip

pods_of() { echo "10.244.$((${1##*-} - 1)).0/24"; }

# Where this machine has its cgroups, of either version.
cgroup_roots() { findmnt -rno TARGET -t cgroup,cgroup2 | grep '^/sys/fs/cgroup'; }

# --- network ---

in_net() { # node command...
    local pid
    pid=$(node_pid "$1") || die "$1 ended: see $(node_dir "$1")/log"
    shift
    nsenter --target "$pid" --net -- "$@"
}

# A link from a network namespace to the first node's bridge. An old one may be there still: of a node that was
# killed, the kernel takes it down in its own time.
link() { # pid interface ip port
    nsenter --target "$1" --net -- ip link del "$2" 2>/dev/null || true
    in_net "$first_node" ip link del "$4" 2>/dev/null || true
    ip link add "$2" netns "$1" address "$(mac_of "$3")" type veth peer name "$4" netns "$(node_pid "$first_node")"
    in_net "$first_node" ip link set "$4" master eth0 up
}

# Routes to the pods of all nodes that there may ever be, so that a new node changes nothing on the others.
pod_routes() { # node|host
    local number other
    for ((number = 1; number <= most_nodes; number++)); do
        other=orlop-$number
        [[ $other == "$1" ]] || echo "route replace $(pods_of "$other") via $(ip_of "$other")"
    done
}

connect_host() {
    link $$ orlop0 "$host_ip" host
    ip addr add "$host_ip/24" dev orlop0
    ip link set orlop0 up
    { echo "route replace $services via $api_ip" && pod_routes host; } | ip -batch -
}

connect() { # node
    if [[ $1 == "$first_node" ]]; then
        in_net "$1" ip link add eth0 address "$(mac_of "$api_ip")" type bridge
    else
        link "$(node_pid "$1")" eth0 "$(ip_of "$1")" "$1"
    fi
    # kube-proxy redirects what goes to a service, but only after a route was found for it.
    {
        echo "link set lo up" # without it the kernel says of a gateway that it is invalid
        echo "link set eth0 up"
        pod_routes "$1" | sed "s/$/ dev eth0 onlink/"
        echo "route replace $services dev eth0"
        echo "addr add $(ip_of "$1")/24 dev eth0" # the last: node-init waits for it
    } | in_net "$1" ip -batch -
    [[ $1 != "$first_node" ]] || connect_others
}

# The first node holds the bridge: the links of all others end with it, and are made when it boots.
connect_others() {
    local name
    connect_host
    for name in $(nodes running); do
        [[ $name == "$first_node" ]] || connect "$name"
    done
}

# --- cgroups ---

# A folder below which a kubelet can make its own, and those above it.
make_cgroup() { # root path
    local controller file above cgroup=$1/$2
    [[ ! -d $cgroup ]] || return 0
    above=${cgroup%/*}
    [[ $2 != */* ]] || make_cgroup "$1" "${2%/*}"
    # Version 2: a controller is there if the folder above says so.
    if [[ -f $above/cgroup.subtree_control ]]; then
        for controller in $(<"$above/cgroup.controllers"); do
            echo "+$controller" >"$above/cgroup.subtree_control"
        done
    fi
    mkdir "$cgroup"
    # Version 1: a cpuset begins empty and takes no process.
    for file in cpuset.cpus cpuset.mems; do
        [[ -f $cgroup/cgroup.controllers || ! -f $cgroup/$file ]] || cat "$above/$file" >"$cgroup/$file"
    done
}

make_cgroups() { # node
    local root
    for root in $(cgroup_roots); do make_cgroup "$root" "orlop/$1"; done
}

# A process that was killed counts for a moment longer.
remove_cgroups() { # path
    local root
    for root in $(cgroup_roots); do
        if [[ -d $root/$1 ]]; then wait_for 20 "the end of the cgroup $root/$1" remove_tree "$root/$1"; fi
    done
}

remove_tree() { find "$1" -depth -type d -exec rmdir {} +; }

# --- life ---

# Run a command with no open file but the standard three: a pipe or lock of whoever ran `up`, kept open by a node,
# would keep them waiting.
alone() {
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
    export name dir api_ip services kubeconfig pki=$ORLOP_CLUSTER/pki
    node_ip=$(ip_of "$name") first=$first_node own_folders="${own_folders[*]}" \
        alone setsid unshare --mount --net --pid --uts --ipc --fork --kill-child --mount-proc \
        "$here/node-init" </dev/null >"$dir/log/node.log" 2>&1 &
    parent=$!
    until pid=$(ps -o pid= --ppid "$parent") && [[ -n $pid ]]; do
        [[ -e /proc/$parent ]] || die "$name did not start: see $dir/log/node.log"
        sleep 0.02
    done
    identity "${pid// /}" >"$dir/pid"
    connect "$name"
}

# Loop devices outlive a node: those with a file in its state, or in its own folders as it sees them.
loops_of() { # node
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

# Everything runs below a node's process 1: the kernel ends it all with that one, and the mounts and the network
# go with their namespaces.
kill_node() { # node
    local pid device loops
    if pid=$(node_pid "$1"); then
        mapfile -t loops < <(loops_of "$1")
        kill -KILL "$pid"
        while [[ -e /proc/$pid ]]; do sleep 0.05; done
        for device in "${loops[@]}"; do losetup --detach "$device"; done
    fi
    rm -f "$(node_dir "$1")/pid"
    remove_cgroups "orlop/$1"
}
