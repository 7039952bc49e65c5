{{/* The driver name is part of every PersistentVolume, so it cannot be configured. */}}
{{- define "orlop.driver" -}}dir.orlop.dev{{- end -}}

{{- define "orlop.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "orlop.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "orlop.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "orlop.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Selectors are immutable: only labels that never change. */}}
{{- define "orlop.selector" -}}
app.kubernetes.io/name: {{ include "orlop.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "orlop.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "orlop.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: orlop
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of pods. They do not include the chart version, so an upgrade of the chart alone does not replace pods. */}}
{{- define "orlop.podLabels" -}}
{{ include "orlop.selector" . }}
app.kubernetes.io/part-of: orlop
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "orlop.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "orlop.sa.node" -}}
{{- .Values.serviceAccount.node.name | default (ternary (printf "%s-node" (include "orlop.fullname" .)) "default" .Values.serviceAccount.node.create) -}}
{{- end -}}
{{- define "orlop.sa.controller" -}}
{{- .Values.serviceAccount.controller.name | default (ternary (printf "%s-controller" (include "orlop.fullname" .)) "default" .Values.serviceAccount.controller.create) -}}
{{- end -}}
{{- define "orlop.sa.snapshotController" -}}
{{- .Values.serviceAccount.snapshotController.name | default (ternary (printf "%s-snapshot-controller" (include "orlop.fullname" .)) "default" .Values.serviceAccount.snapshotController.create) -}}
{{- end -}}

{{/* "true" if snapshots are enabled, else empty. */}}
{{- define "orlop.snapshots" -}}
{{- $on := toString .Values.snapshots.enabled -}}
{{- if or (eq $on "true") (and (eq $on "auto") (.Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1")) -}}true{{- end -}}
{{- end -}}

{{/* "true" if group snapshots are enabled, else empty. */}}
{{- define "orlop.groups" -}}
{{- $on := toString .Values.snapshots.groups.enabled -}}
{{- if include "orlop.snapshots" . -}}
{{- if or (eq $on "true") (and (eq $on "auto") (.Capabilities.APIVersions.Has "groupsnapshot.storage.k8s.io/v1")) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether a program of external-snapshotter, which reads group snapshots by default, does so. */}}
{{- define "orlop.groups.gate" -}}
- --feature-gates=CSIVolumeGroupSnapshot={{ . }}
{{- end -}}

{{/* "true" if this release runs the snapshot-controller. auto checks whether this chart installed the CRDs: they then
     have a label, which upgrades preserve, so the result is the same at every upgrade. */}}
{{- define "orlop.snapshotController" -}}
{{- $on := toString .Values.snapshots.controller.enabled -}}
{{- if include "orlop.snapshots" . -}}
{{- if eq $on "true" -}}true
{{- else if eq $on "auto" -}}
{{- $crd := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "volumesnapshots.snapshot.storage.k8s.io" -}}
{{- if eq (dig "metadata" "labels" "orlop.dev/installed-by" "" $crd) "orlop" -}}true{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Security context of all containers except orlop in the DaemonSet. */}}
{{- define "orlop.restrictedSecurityContext" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Fails on contradictory values that the schema cannot detect. Included once, by the DaemonSet. */}}
{{- define "orlop.validate" -}}
{{- $paths := dict -}}
{{- $reserved := list "bin" "boot" "csi" "dev" "etc" "lib" "lib64" "proc" "registration" "run" "sbin" "sys" "usr" -}}
{{- range $name, $pool := .Values.pools -}}
{{- if has (index (splitList "/" $pool.path) 1) $reserved -}}
{{- fail (printf "pool %s: the path %s is in a reserved directory: choose another path" $name $pool.path) -}}
{{- end -}}
{{- if hasKey $paths $pool.path -}}
{{- fail (printf "pools %s and %s have the same path %s: use one path for each pool" (get $paths $pool.path) $name $pool.path) -}}
{{- end -}}
{{- range $path, $other := $paths -}}
{{- if or (hasPrefix (printf "%s/" $path) $pool.path) (hasPrefix (printf "%s/" $pool.path) $path) -}}
{{- fail (printf "pools %s and %s: one path is inside the other" $other $name) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $paths $pool.path $name -}}
{{- end -}}
{{- $names := dict -}}
{{- $defaults := list -}}
{{- range concat (.Values.storageClasses | default list) (ternary (.Values.nfs.storageClasses | default list) list .Values.nfs.enabled) -}}
{{- if hasKey $names .name -}}{{- fail (printf "storageClasses: the name %s is used twice" .name) -}}{{- end -}}
{{- $_ := set $names .name true -}}
{{- if .default -}}{{- $defaults = append $defaults .name -}}{{- end -}}
{{- end -}}
{{- range .Values.storageClasses -}}
{{- $pool := dig "parameters" "pool" "" . -}}
{{- if and $pool (not (hasKey $.Values.pools $pool)) -}}
{{- fail (printf "storageClasses: %s refers to the pool %s, which does not exist: add it to pools" .name $pool) -}}
{{- end -}}
{{- end -}}
{{- if gt (len $defaults) 1 -}}{{- fail (printf "storageClasses: only one class can be the default, not %s" (join " and " $defaults)) -}}{{- end -}}
{{- end -}}
