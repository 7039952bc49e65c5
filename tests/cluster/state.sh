# Writes the state of a cluster: certificates and the configuration of its components. Sourced by up.
# shellcheck shell=bash disable=SC2154

state=$ORLOP_CLUSTER

# --- certificates and kubeconfigs ---

cert() { # name subject extensions
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
        -keyout "$state/pki/$1.key" -subj "$2" 2>/dev/null |
        openssl x509 -req -days 365 -CA "$state/pki/ca.crt" -CAkey "$state/pki/ca.key" -CAcreateserial \
            -extfile <(echo "$3") -out "$state/pki/$1.crt" 2>/dev/null
}

client_cert() { cert "$1" "$2" 'extendedKeyUsage = clientAuth'; } # name subject

kubeconfig_of() { # name
    cat <<YAML
apiVersion: v1
kind: Config
current-context: orlop
contexts: [{name: orlop, context: {cluster: orlop, user: $1}}]
clusters:
- name: orlop
  cluster:
    server: https://$api_ip:6443
    certificate-authority-data: $(base64 -w0 "$state/pki/ca.crt")
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w0 "$state/pki/$1.crt")
    client-key-data: $(base64 -w0 "$state/pki/$1.key")
YAML
}

make_cluster_state() {
    install -d -m 711 "$state"
    mkdir "$state"/{pki,nodes}
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj /CN=orlop \
        -keyout "$state/pki/ca.key" -out "$state/pki/ca.crt" 2>/dev/null
    openssl ecparam -genkey -name prime256v1 -noout -out "$state/pki/sa.key"
    openssl ec -in "$state/pki/sa.key" -pubout -out "$state/pki/sa.pub" 2>/dev/null
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out "$state/pki/ssh.key"
    cert apiserver /CN=kube-apiserver \
        "subjectAltName = IP:$api_ip, IP:${service_cidr%.*}.1, DNS:kubernetes.default.svc"
    client_cert admin /O=system:masters/CN=admin
    client_cert kube-proxy /CN=system:kube-proxy
    (umask 077 && kubeconfig_of admin >"$kubeconfig")
}

# --- nodes ---

make_node_state() { # node
    local dir
    dir=$(node_dir "$1")
    mkdir -p "$dir"/{conf/cni,log}
    mkdir -p "${private_dirs[@]/#/$dir/}" "${private_dirs[@]/#//var/lib/}"
    if [[ -n ${ORLOP_CLUSTER_PRELOADED-} ]]; then
        mkdir "$dir/containerd"
        tar -C "$dir/containerd" --xattrs -xf "$ORLOP_CLUSTER_PRELOADED"
    fi
    client_cert "$1" "/O=system:nodes/CN=system:node:$1"
    (umask 077 && kubeconfig_of "$1" >"$dir/conf/kubelet.kubeconfig" &&
        kubeconfig_of kube-proxy >"$dir/conf/kube-proxy.kubeconfig")
    containerd_config "$1" >"$dir/conf/containerd.toml"
    cni_config "$1" >"$dir/conf/cni/orlop.conflist"
    kubelet_config "$1" >"$dir/conf/kubelet.yaml"
    kube_proxy_config "$dir" >"$dir/conf/kube-proxy.yaml"
    echo "nameserver ${service_cidr%.*}.10" >"$dir/conf/resolv.conf"
}

containerd_config() { # node
    local dir
    dir=$(node_dir "$1")
    cat <<TOML
version = 2
root = "$dir/containerd"
state = "/run/containerd"
[grpc]
  address = "$(containerd_socket "$1")"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$pause_image"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/conf/cni"
TOML
}

cni_config() { # node
    cat <<JSON
{"cniVersion": "1.0.0", "name": "orlop", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(pod_cidr_of "$1")"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
JSON
}

kubelet_config() { # node
    cat <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $(ip_of "$1")
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $state/pki/ca.crt}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix://$(containerd_socket "$1")
cgroupDriver: cgroupfs
cgroupRoot: /orlop/$1
failCgroupV1: false
failSwapOn: false
clusterDNS: [${service_cidr%.*}.10]
clusterDomain: cluster.local
syncFrequency: 10s
crashLoopBackOff: {maxContainerRestartPeriod: 1s}
nodeLeaseDurationSeconds: 10
resolvConf: $(node_dir "$1")/conf/resolv.conf
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
volumePluginDir: /var/lib/kubelet/volume-plugins
YAML
}

kube_proxy_config() { # directory
    cat <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: $1/conf/kube-proxy.kubeconfig}
clusterCIDR: $pod_cidr
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
}
