{{- define "orlop.nfs.driver" -}}nfs.orlop.dev{{- end -}}

{{/* Like "orlop.driver" for names of objects: <fullname>-nfs. */}}
{{- define "orlop.nfs.fullname" -}}
{{- printf "%s-nfs" (include "orlop.fullname" .) -}}
{{- end -}}

{{/* The pools on NFS servers: those of nfs.pools, and the pool `default` of nfs.server and nfs.path. */}}
{{- define "orlop.nfs.pools" -}}
{{- $pools := deepCopy .Values.nfs.pools -}}
{{- if .Values.nfs.server -}}
{{- $_ := set $pools "default" (pick .Values.nfs "server" "path" "version" "options") -}}
{{- end -}}
{{- toYaml $pools -}}
{{- end -}}

{{/* The values of a component, "node" or "controller", with those that nfs has of its own: (list . component). */}}
{{- define "orlop.nfs.values" -}}
{{- $root := first . -}}
{{- $values := deepCopy (get $root.Values (last .)) -}}
{{- range $key, $value := get $root.Values.nfs (last .) -}}
{{- $_ := set $values $key $value -}}
{{- end -}}
{{- toYaml $values -}}
{{- end -}}

{{- define "orlop.sa.nfsNode" -}}
{{- .Values.serviceAccount.nfsNode.name | default (ternary (printf "%s-node" (include "orlop.nfs.fullname" .)) "default" .Values.serviceAccount.nfsNode.create) -}}
{{- end -}}
{{- define "orlop.sa.nfsController" -}}
{{- .Values.serviceAccount.nfsController.name | default (ternary (printf "%s-controller" (include "orlop.nfs.fullname" .)) "default" .Values.serviceAccount.nfsController.create) -}}
{{- end -}}

{{/* Fails on contradictory values that the schema cannot detect. Included once, by the DaemonSet. */}}
{{- define "orlop.nfs.validate" -}}
{{- with .Values.nfs -}}
{{- if ne (empty .server) (empty .path) -}}
{{- fail "nfs: server and path are set together: the pool is a directory of the server" -}}
{{- end -}}
{{- if and .server (hasKey .pools "default") -}}
{{- fail "nfs: server and path are the pool `default`, which nfs.pools has, too: use one of them" -}}
{{- end -}}
{{- end -}}
{{- $pools := include "orlop.nfs.pools" . | fromYaml -}}
{{- range .Values.nfs.storageClasses -}}
{{- $pool := dig "parameters" "pool" "" . -}}
{{- if and $pool (not (hasKey $pools $pool)) -}}
{{- fail (printf "nfs: storageClasses: %s refers to the pool %s, which does not exist: add it to nfs.pools" .name $pool) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Fields of the pods of both components: (dict of "orlop.pod"). */}}
{{- define "orlop.nfs.pod" -}}
# A mount of NFS belongs to the network of the process that makes it, and must outlive the pod.
hostNetwork: true
# The server may have a name of the cluster.
dnsPolicy: ClusterFirstWithHostNet
{{ include "orlop.pod" . }}
{{- end -}}

{{/* The arguments of orlop in both components: (dict "root" $ "pools" … "port" of the metrics "values" …). */}}
{{- define "orlop.nfs.args" -}}
- serve
{{- if .pools }}
- --config=/etc/orlop/orlop.toml
{{- else }}
# Static shares only.
- --no-pools
{{- end }}
- --csi=unix:///csi/csi.sock
- --driver={{ include "orlop.nfs.driver" .root }}
# Every node can use each volume.
- --topology=false
{{- with .root.Values.metrics }}
{{- if .enabled }}
- --http={{ .bind }}:{{ $.port }}
{{- end }}
{{- end }}
- --log-format={{ .root.Values.logFormat }}
{{- range .values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/* The rest of orlop's container in both components: (the same). */}}
{{- define "orlop.nfs.container" -}}
env:
  # Errors name the node by it.
  - name: ORLOP_NODE_ID
    valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
  # For the commands in this container.
  - {name: ORLOP_DRIVER, value: {{ include "orlop.nfs.driver" .root }}}
  {{- with .values.extraEnv }}{{ toYaml . | nindent 2 }}{{ end }}
{{- if .root.Values.metrics.enabled }}
ports:
  - {name: metrics, containerPort: {{ .port }}, hostPort: {{ .port }}, protocol: TCP}
{{- end }}
{{ include "orlop.startupProbe" .root }}
{{ include "orlop.probes" .root }}
securityContext:
  # orlop mounts the shares, and on a node, Bidirectional mount propagation requires it.
  privileged: true
  readOnlyRootFilesystem: true
resources: {{- toYaml .values.resources | nindent 2 }}
{{- end -}}

{{- define "orlop.nfs.config" -}}
# orlop reads the pools at startup: a change of the pools replaces the pods.
orlop.dev/config: {{ list (include "orlop.nfs.pools" .) .Values.callTimeout | toJson | sha256sum | trunc 16 }}
{{- end -}}
