//! Kubernetes objects as JSON. A test changes them with [`with`].

use serde_json::{Value, json};

use super::cluster::DRIVER;

/// A ReadWriteOnce claim of a class.
pub(crate) fn claim(name: &str, class: &str, size: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "storageClassName": class,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
        },
    })
}

/// A claim with a snapshot or another claim as its source.
pub(crate) fn copy(name: &str, class: &str, size: &str, of: &Value) -> Value {
    with(claim(name, class, size), "/spec", "dataSource", of.clone())
}

pub(crate) fn from_snapshot(name: &str) -> Value {
    json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name})
}

pub(crate) fn from_claim(name: &str) -> Value {
    json!({"kind": "PersistentVolumeClaim", "name": name})
}

pub(crate) fn snapshot(name: &str, of: &str) -> Value {
    // The API server derives the kind from the URL for built-in kinds only.
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": "orlop", "source": {"persistentVolumeClaimName": of}},
    })
}

/// A pod that runs a shell script with a claim at /data.
pub(crate) fn pod(name: &str, claim: &str, script: &str) -> Value {
    pod_with(name, &json!({"persistentVolumeClaim": {"claimName": claim}}), script)
}

/// A pod that runs a shell script with any volume at /data.
pub(crate) fn pod_with(name: &str, volume: &Value, script: &str) -> Value {
    let mut data = volume.clone();
    data["name"] = "data".into();
    json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": "busybox:1.36",
                "command": ["sh", "-euc", script],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [data],
        },
    })
}

/// Binds a pod to a node.
pub(crate) fn on_node(pod: Value, node: &str) -> Value {
    with(pod, "/spec", "nodeSelector", json!({"kubernetes.io/hostname": node}))
}

/// A script that runs until the pod is deleted.
pub(crate) const STAY: &str = "trap 'exit 0' TERM; sleep 3600 & wait";

/// A StatefulSet of one pod that runs a script.
pub(crate) fn set(name: &str, class: &str, size: &str, script: &str) -> Value {
    let mut template = pod(name, "", script);
    template["spec"].as_object_mut().into_iter().for_each(|spec| {
        spec.remove("volumes");
        spec.insert("restartPolicy".into(), "Always".into());
    });
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "serviceName": name,
            "selector": {"matchLabels": {"app": name}},
            "template": template,
            "volumeClaimTemplates": [claim("data", class, size)],
        },
    })
}

/// A static PersistentVolume for one claim.
pub(crate) fn volume(name: &str, handle: &str, node: &str, namespace: &str, claim: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "16Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "static",
            "claimRef": {"namespace": namespace, "name": claim},
            "csi": {"driver": DRIVER, "volumeHandle": handle},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "dir.orlop.dev/node", "operator": "In", "values": [node]},
            ]}]}},
        },
    })
}

/// A generic ephemeral volume of a pod.
pub(crate) fn generic(class: &str, size: &str) -> Value {
    let spec = claim("", class, size)["spec"].clone();
    json!({"ephemeral": {"volumeClaimTemplate": {"spec": spec}}})
}

/// A CSI inline volume of a pod.
pub(crate) fn inline(attributes: &Value) -> Value {
    json!({"csi": {"driver": DRIVER, "volumeAttributes": attributes}})
}

/// A StorageClass of orlop.
pub(crate) fn class(name: &str, parameters: &Value) -> Value {
    json!({
        "metadata": {"name": name},
        "provisioner": DRIVER,
        "volumeBindingMode": "Immediate",
        "reclaimPolicy": "Delete",
        "parameters": parameters,
    })
}

/// Sets a key in the part of an object at `path`.
pub(crate) fn with(mut object: Value, path: &str, key: &str, value: Value) -> Value {
    object.pointer_mut(path).unwrap()[key] = value;
    object
}
