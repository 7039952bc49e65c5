{{/* Metadata of an object of a component: (dict "root" $ "name" … "component" …). */}}
{{- define "orlop.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "orlop.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels that select the pods of a component: (dict "root" $ "component" …). */}}
{{- define "orlop.componentSelector" -}}
{{ include "orlop.selector" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of the pods of a component: (dict "root" $ "component" … "values" the values of the component). */}}
{{- define "orlop.componentLabels" -}}
{{ include "orlop.podLabels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- with .values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Fields of the pods of a component: (dict "root" $ "component" … "values" … "serviceAccount" its name). */}}
{{- define "orlop.pod" -}}
serviceAccountName: {{ .serviceAccount }}
priorityClassName: {{ .values.priorityClassName }}
terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
# The environment variables of services are not used.
enableServiceLinks: false
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .values.affinity }}
affinity: {{- toYaml .values.affinity | nindent 2 }}
{{- else if gt (int .values.replicas) 1 }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{- include "orlop.componentSelector" . | nindent 14 }}
{{- end }}
{{- end -}}

{{/* The name, the image and the command of orlop's container. */}}
{{- define "orlop.program" -}}
name: orlop
image: {{ include "orlop.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [/orlop]
{{- end -}}

{{/* Identity.Probe through the socket, without a sidecar or a port. */}}
{{- define "orlop.probe" -}}
exec: {command: [/orlop, probe, --csi, "unix:///csi/csi.sock"]}
{{- end -}}

{{- define "orlop.probes" -}}
readinessProbe:
  {{- include "orlop.probe" . | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
livenessProbe:
  {{- include "orlop.probe" . | nindent 2 }}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
{{- end -}}

{{/* For an orlop with pools. */}}
{{- define "orlop.startupProbe" -}}
startupProbe:
  {{- include "orlop.probe" . | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: 5
  # 10 minutes, because orlop reads the records of all volumes at startup.
  failureThreshold: 300
{{- end -}}

{{/* A sidecar: (dict "root" $ "name" … "args" text "env" its variables, each with a field of the pod "privileged" whether
     the container of orlop is "hostNetwork" whether the pod uses that of the host). */}}
{{- define "orlop.sidecar" -}}
{{- $short := trimPrefix "csi-" .name -}}
{{- $values := get .root.Values.sidecars $short -}}
{{- /* A port would be one of the host, where the ports of the other driver's sidecars may be used. */}}
{{- $port := ternary 0 $values.httpPort (.hostNetwork | default false) -}}
name: {{ .name }}
image: {{ $values.image.repository }}:{{ $values.image.tag }}
imagePullPolicy: {{ $values.image.pullPolicy }}
args:
  - --csi-address=/csi/csi.sock
  - --v={{ .root.Values.sidecars.logLevel }}
  - --timeout={{ $values.timeout }}
  {{- .args | nindent 2 }}
  {{- if $port }}
  - --http-endpoint=:{{ $port }}
  {{- end }}
  {{- range $values.extraArgs }}
  - {{ . | quote }}
  {{- end }}
{{- if $port }}
ports:
  - {name: {{ $short }}, containerPort: {{ $port }}, protocol: TCP}
{{- end }}
resources: {{- toYaml $values.resources | nindent 2 }}
{{- with .env }}
env:
  {{- range $name, $field := . }}
  - name: {{ $name }}
    valueFrom: {fieldRef: {fieldPath: {{ $field }}}}
  {{- end }}
{{- end }}
securityContext:
  {{- include "orlop.restrictedSecurityContext" .root | nindent 2 }}
  {{- if .privileged }}
  {{- with .root.Values.sidecars.seLinuxOptions }}
  seLinuxOptions: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
volumeMounts:
  - {name: csi, mountPath: /csi}
{{- end -}}

{{/* How the container of orlop on a node reaches the kubelet: (dict "root" $ "driver" …), for "args", "mounts" and
     "volumes". */}}
{{- define "orlop.kubelet.args" -}}
# orlop registers itself with the kubelet. --kubelet-csi-path is the path of /csi/csi.sock on the host.
- --kubelet-registration=unix:///registration/{{ .driver }}@reg.sock
- --kubelet-csi-path={{ .root.Values.kubeletDir }}/plugins/{{ .driver }}/csi.sock
{{- end -}}

{{- define "orlop.kubelet.mounts" -}}
- {name: csi, mountPath: /csi}
- {name: registration, mountPath: /registration}
# Mounts made here must appear on the host, for the kubelet and the pods.
- {name: pods, mountPath: {{ .root.Values.kubeletDir }}/pods, mountPropagation: Bidirectional}
- {name: plugins, mountPath: {{ .root.Values.kubeletDir }}/plugins, mountPropagation: Bidirectional}
{{- end -}}

{{- define "orlop.kubelet.volumes" -}}
- name: csi
  hostPath: {path: {{ .root.Values.kubeletDir }}/plugins/{{ .driver }}, type: DirectoryOrCreate}
# The kubelet creates these three directories. With Directory, a wrong kubeletDir causes an event of the pod;
# with DirectoryOrCreate, the driver would silently stay unregistered.
- name: registration
  hostPath: {path: {{ .root.Values.kubeletDir }}/plugins_registry, type: Directory}
- name: pods
  hostPath: {path: {{ .root.Values.kubeletDir }}/pods, type: Directory}
- name: plugins
  hostPath: {path: {{ .root.Values.kubeletDir }}/plugins, type: Directory}
{{- end -}}

{{- define "orlop.resizer.args" -}}
- --leader-election
- --kube-api-qps=50
- --kube-api-burst=100
# Volumes can be expanded while in use, so csi-resizer does not have to watch pods.
- --handle-volume-inuse-error=false
{{- end -}}
