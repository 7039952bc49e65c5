{{/* The CSIDriver: (dict "root" $ "driver" … "storageCapacity" … "fsGroupPolicy" … "modes" a list). */}}
{{- define "orlop.csidriver" -}}
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata:
  name: {{ .driver }}
  labels: {{- include "orlop.labels" .root | nindent 4 }}
  {{- /* Without this object Kubernetes attaches the volumes of every new pod, and orlop has no attacher: such a pod would
       wait forever, also after the next installation. */}}
  annotations:
    helm.sh/resource-policy: keep
spec:
  attachRequired: false
  podInfoOnMount: true
  fsGroupPolicy: {{ .fsGroupPolicy }}
  storageCapacity: {{ .storageCapacity }}
  requiresRepublish: false
  # All volumes of a pool share one filesystem, which can have only one SELinux context mount option.
  seLinuxMount: false
  volumeLifecycleModes: [{{ join ", " .modes }}]
{{- end -}}

{{/* The classes of a driver: (dict "root" $ "driver" … "values" the values that list them "bindingMode" the default). */}}
{{- define "orlop.classes" -}}
{{- range .values.storageClasses }}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: {{ .name }}
  labels:
    {{- include "orlop.labels" $.root | nindent 4 }}
    {{- with .labels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    storageclass.kubernetes.io/is-default-class: {{ .default | default false | quote }}
    {{- with .annotations }}{{ toYaml . | nindent 4 }}{{ end }}
provisioner: {{ $.driver }}
volumeBindingMode: {{ .volumeBindingMode | default $.bindingMode }}
allowVolumeExpansion: {{ ternary .allowVolumeExpansion true (hasKey . "allowVolumeExpansion") }}
reclaimPolicy: {{ .reclaimPolicy | default "Delete" }}
{{- with .mountOptions }}
mountOptions: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .parameters }}
parameters:
  {{- range $key, $value := . }}
  {{ $key }}: {{ ternary (printf "%d" (int64 $value)) $value (ne (kindOf $value) "string") | quote }}
  {{- end }}
{{- end }}
{{- with .allowedTopologies }}
allowedTopologies: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- range .values.volumeAttributesClasses }}
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
metadata:
  name: {{ .name }}
  labels: {{- include "orlop.labels" $.root | nindent 4 }}
driverName: {{ $.driver }}
parameters:
  {{- range $key, $value := .parameters }}
  {{ $key }}: {{ ternary (printf "%d" (int64 $value)) $value (ne (kindOf $value) "string") | quote }}
  {{- end }}
{{- end }}
{{- if include "orlop.snapshots" .root }}
{{- range .values.volumeSnapshotClasses }}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata:
  name: {{ .name }}
  labels: {{- include "orlop.labels" $.root | nindent 4 }}
  annotations:
    snapshot.storage.kubernetes.io/is-default-class: {{ .default | default false | quote }}
driver: {{ $.driver }}
deletionPolicy: {{ .deletionPolicy | default "Delete" }}
{{- with .parameters }}
parameters: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- if include "orlop.groups" .root }}
{{- range .values.volumeGroupSnapshotClasses }}
---
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshotClass
metadata:
  name: {{ .name }}
  labels: {{- include "orlop.labels" $.root | nindent 4 }}
  annotations:
    groupsnapshot.storage.kubernetes.io/is-default-class: {{ .default | default false | quote }}
driver: {{ $.driver }}
deletionPolicy: {{ .deletionPolicy | default "Delete" }}
{{- with .parameters }}
parameters: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The sections of the configuration file for pools, a map by name. `create` is a setting of the chart only. */}}
{{- define "orlop.toml" -}}
{{- range $name, $pool := . }}
[[pool]]
name = {{ $name | quote }}
{{- range $key := list "server" "path" "version" "options" }}
{{- with get $pool $key }}
{{ $key }} = {{ . | quote }}
{{- end }}
{{- end }}
{{- if $pool.mounted }}
mounted = true
{{- end }}
{{- with $pool.uuid }}
uuid = {{ . | quote }}
{{- end }}
{{- with $pool.overcommit }}
overcommit = {{ printf "%.3f" (float64 .) }}
{{- end }}
{{- with $pool.reserve }}
reserve = {{ . | quote }}
{{- end }}
{{- range $key := list "exclusive" "shared" "isolated" }}
{{- if get $pool $key }}
{{ $key }} = true
{{- end }}
{{- end }}
{{ end }}
{{- end -}}

{{/* The section of the configuration file for all pools. */}}
{{- define "orlop.tuning" -}}
{{- with .Values.callTimeout }}
[tuning]
call-timeout = {{ . | quote }}
{{ end }}
{{- end -}}

{{/* A role of a ServiceAccount and its binding: (dict "root" $ "kind" ClusterRole or Role "name" … "serviceAccount" …
     "rules" text). */}}
{{- define "orlop.role" -}}
{{- $metadata := printf "  name: %s" .name -}}
{{- if eq .kind "Role" }}{{ $metadata = printf "%s\n  namespace: %s" $metadata .root.Release.Namespace }}{{ end -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}
metadata:
{{ $metadata }}
  labels: {{- include "orlop.labels" .root | nindent 4 }}
rules:
{{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}Binding
metadata:
{{ $metadata }}
  labels: {{- include "orlop.labels" .root | nindent 4 }}
subjects:
  - kind: ServiceAccount
    name: {{ .serviceAccount }}
    namespace: {{ .root.Release.Namespace }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: {{ .name }}
{{- end -}}

{{/* What csi-provisioner and csi-snapshotter need (no nodes, csinodes or secrets). */}}
{{- define "orlop.rules.provisioner" -}}
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  # get: for the events of a claim (--claim-events). patch: orlop moves a claim to the node of its source
  # (--follow-sources).
  verbs: [get, list, watch, update, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
- apiGroups: [storage.k8s.io]
  resources: [storageclasses]
  verbs: [get, list, watch]
- apiGroups: [storage.k8s.io]
  resources: [volumeattributesclasses]
  verbs: [get]
{{- if include "orlop.snapshots" . }}
# update: a finalizer protects a snapshot from deletion while a volume is created from it.
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshots]
  verbs: [get, list, watch, update]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotclasses]
  verbs: [get, list, watch]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotcontents]
  verbs: [get, list, watch, update, patch]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotcontents/status]
  verbs: [update, patch]
{{- end }}
{{- end -}}

{{/* What orlop needs for group snapshots, in addition to the rules above. */}}
{{- define "orlop.rules.groups" -}}
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshotcontents]
  verbs: [get, list, watch, patch]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshotcontents/status]
  verbs: [patch]
- apiGroups: [groupsnapshot.storage.k8s.io]
  resources: [volumegroupsnapshotclasses]
  verbs: [get]
{{- end -}}

{{/* What csi-resizer needs. */}}
{{- define "orlop.rules.resizer" -}}
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [get, list, watch, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [persistentvolumeclaims/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
- apiGroups: [storage.k8s.io]
  resources: [volumeattributesclasses]
  verbs: [get, list, watch]
{{- end -}}

{{- define "orlop.rules.leases" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update]
{{- end -}}

{{/* For a Deployment: (dict "root" $ "name" … "component" …). */}}
{{- define "orlop.pdb" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "orlop.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "orlop.componentSelector" . | nindent 6 }}
{{- end -}}
