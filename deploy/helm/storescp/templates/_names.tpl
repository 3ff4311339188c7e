{{- define "storescp.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "storescp.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "storescp.labels" -}}
{{ include "storescp.selector" . }}
{{ include "storescp.release" . }}
{{- end -}}

{{- define "storescp.release" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* The index is no member of the service: names of its own keep it out of the selectors of services and policies. */}}
{{- define "storescp.indexSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-index
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "storescp.image" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end -}}

{{/* The rights of a pod, but for those to its volumes. */}}
{{- define "storescp.podRights" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "storescp.rights" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* What the service and the command that makes its storage root share, so that both find the same root. */}}
{{- define "storescp.container" -}}
{{ include "storescp.image" . }}
workingDir: /data
env:
  - {name: STORESCP_LOCAL_STORAGE__CREATE, value: "false"}
  - {name: STORESCP_HTTP__HOST, value: 0.0.0.0}
  - {name: STORESCP_HTTP__PORT, value: {{ .Values.http.port | quote }}}
  {{- with .Values.http.tokenSecret }}
  - name: STORESCP_HTTP__TOKEN
    valueFrom: {secretKeyRef: {name: {{ . }}, key: token}}
  {{- end }}
  {{- range $name, $value := .Values.env }}
  - {name: {{ $name }}, value: {{ $value | quote }}}
  {{- end }}
{{- with .Values.extraEnvFrom }}
envFrom: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- include "storescp.rights" . | nindent 2 }}
resources: {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - {name: data, mountPath: /data}
  {{- if .Values.existingSecret }}
  - {name: config, mountPath: /etc/storescp, readOnly: true}
  {{- end }}
  - {name: tmp, mountPath: /tmp}
{{- end -}}
