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
