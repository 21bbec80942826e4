{{/* Labels of every object of a component. Call with a dict: root, component. */}}
{{- define "mesh.labels" -}}
{{ include "mesh.selector" . }}
app.kubernetes.io/part-of: mesh
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Labels by which a component's pods are found; they may never change. */}}
{{- define "mesh.selector" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* Reference of an image. Call with a dict: root, image. */}}
{{- define "mesh.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* Control servers of the agents, separated by commas. */}}
{{- define "mesh.controlServers" -}}
{{- if .Values.agent.controlServers }}
{{- join "," .Values.agent.controlServers }}
{{- else if .Values.control.enabled }}
{{- printf "https://mesh-control.%s.svc.%s:15012" .Release.Namespace .Values.cluster.domain }}
{{- else }}
{{- fail "control.enabled is false: say where the control servers are in agent.controlServers" }}
{{- end }}
{{- end }}

{{/* An address and a port as one; IPv6 addresses in brackets. */}}
{{- define "mesh.socketAddress" -}}
{{ ternary (printf "[%s]" .address) .address (contains ":" .address) }}:{{ .port }}
{{- end }}

{{/* An HTTP check of an agent. The kubelet asks the node's address, or the one address the agent listens on. */}}
{{- define "mesh.agentProbe" -}}
path: {{ .path }}
port: http-monitoring
{{- if not (has .http.address (list "0.0.0.0" "::")) }}
host: {{ .http.address | quote }}
{{- end }}
{{- end }}

{{/* "true" if the release has the definition of a kind: where it is wanted, and nobody else has made it. Call with a dict:
root, name. Without a cluster to ask (helm template) nobody has. */}}
{{- define "mesh.definesKind" -}}
{{- if eq .root.Values.crds.install "always" -}}
true
{{- else if eq .root.Values.crds.install "auto" -}}
{{- $there := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" .name -}}
{{- $annotations := ($there.metadata).annotations | default dict -}}
{{- $release := list (get $annotations "meta.helm.sh/release-namespace") (get $annotations "meta.helm.sh/release-name") -}}
{{- if or (not $there) (deepEqual $release (list .root.Release.Namespace .root.Release.Name)) -}}
true
{{- end -}}
{{- end -}}
{{- end }}
