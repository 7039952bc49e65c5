# Objects of the cluster, and what is on the server. Sourced by inside.
# shellcheck shell=bash disable=SC2154

claim() { # name class access-mode size [snapshot] [group]
    local source= labels=
    [[ -z ${6-} ]] || labels=", labels: {group: $6}"
    [[ -z ${5-} ]] || source="dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: $5}"
    kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $1$labels}
spec:
  storageClassName: $2
  accessModes: [$3]
  resources: {requests: {storage: $4}}
  $source
YAML
}

snapshot() { # name class claim
    kubectl apply -f - >/dev/null <<YAML
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: $1}
spec: {volumeSnapshotClassName: $2, source: {persistentVolumeClaimName: $3}}
YAML
}

pod() { # name claim node
    kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeSelector: {kubernetes.io/hostname: $3}
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: busybox:1.36
      command: [sleep, "86400"]
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: $2}}]
YAML
}

# A pod that counts in two volumes: a line in the first one, and then a line in the second one.
counter() { # name claim claim node
    kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeSelector: {kubernetes.io/hostname: $4}
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: busybox:1.36
      command: [sh, -c, "touch /$2/log /$3/log; n=0; while :; do n=\$((n + 1)); echo \$n >>/$2/log; echo \$n >>/$3/log; usleep 20000; done"]
      volumeMounts: [{name: $2, mountPath: /$2}, {name: $3, mountPath: /$3}]
  volumes:
    - {name: $2, persistentVolumeClaim: {claimName: $2}}
    - {name: $3, persistentVolumeClaim: {claimName: $3}}
YAML
}

# Waits for pods, and says why they do not start.
ready() { # pod...
    kubectl wait pod "$@" --for=condition=Ready --timeout=600s >/dev/null && return
    kubectl get pods,pvc -o wide >&2
    kubectl get events --sort-by=.lastTimestamp >&2
    return 1
}

in_pod() { kubectl exec "$1" -- sh -c "$2"; } # pod command

expand() { kubectl patch pvc "$1" -p "{\"spec\": {\"resources\": {\"requests\": {\"storage\": \"$2\"}}}}" >/dev/null; } # claim size

has_capacity() { [[ $(kubectl get pvc "$1" -o jsonpath='{.status.capacity.storage}') == "$2" ]]; } # claim size

is_ready_snapshot() { [[ $(kubectl get volumesnapshot "$1" -o jsonpath='{.status.readyToUse}') == true ]]; } # name

lines() { in_pod "$1" "wc -l <$2"; } # pod file

has_lines() { (($(lines "$1" "$2") >= $3)); } # pod file count

group_class() { # name
    kubectl apply -f - >/dev/null <<YAML
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshotClass
metadata: {name: $1}
driver: dir.orlop.dev
deletionPolicy: Delete
parameters: {maxPause: 60s}
YAML
}

group_snapshot() { # name class label
    kubectl apply -f - >/dev/null <<YAML
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: $1}
spec: {volumeGroupSnapshotClassName: $2, source: {selector: {matchLabels: {group: $3}}}}
YAML
}

is_ready_group() { [[ $(kubectl get volumegroupsnapshot "$1" -o jsonpath='{.status.readyToUse}') == true ]]; } # name

# Prints the snapshots of a group: name, claim, whether it is ready.
members() { # uid
    kubectl get volumesnapshot -o jsonpath="{range .items[?(@.metadata.ownerReferences[0].uid==\"$1\")]}{.metadata.name} {.spec.source.persistentVolumeClaimName} {.status.readyToUse}{\"\\n\"}{end}"
}

are_ready_members() { # uid count
    local all
    all=$(members "$1") && [[ $(grep -c . <<<"$all") == "$2" && $(grep -c ' true$' <<<"$all") == "$2" ]]
}

member_of() { members "$1" | awk -v claim="$2" '$2 == claim { print $1 }'; } # uid claim

size_in_pod() { in_pod "$1" "df -kP /data" | awk 'NR == 2 { print $2 }'; } # pod

shows_size() { [[ $(size_in_pod "$1") == "$2" ]]; } # pod KiB

no_volumes() { [[ -z $(kubectl get pv -o name) ]]; }

# Prints the number of entries in a directory of the pool on the server.
entries() { find "/mnt/export/pool/$1" -mindepth 1 -maxdepth 1 | wc -l; } # directory

trash_is_empty() { [[ $(entries trash) == 0 ]]; }

make_trash_due() {
    local entry
    for entry in /mnt/export/pool/trash/*+600.*; do [[ ! -e $entry ]] || mv "$entry" "${entry/+600./+0.}"; done
}

# Prints the number of mounts of volumes on all nodes.
kubelet_mounts() {
    local node
    for node in $(nodes running); do "$here/node" -n "$node" cat /proc/1/mounts; done | grep -c 'kubernetes.io~csi' || true
}
