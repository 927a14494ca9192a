{{- define "tidemill.name" -}}
{{- if contains "tidemill" .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-tidemill" .Release.Name }}{{ end -}}
{{- end }}

{{- define "tidemill.selector" -}}
app.kubernetes.io/name: tidemill
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tidemill.labels" -}}
{{ include "tidemill.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "tidemill.image" -}}
{{- with .Values.image -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ if .digest }}@{{ .digest }}{{ end }}
{{- end -}}
{{- end }}

{{- define "tidemill.stages" -}}
api ingest processors results{{ if .Values.webhooks.enabled }} webhooks{{ end }}
{{- end }}

{{- define "tidemill.kafka" -}}
{{- $name := include "tidemill.name" . -}}
{{- if .Values.strimzi.enabled -}}
servers: {{ $name }}-kafka-bootstrap:9093
protocol: SASL_SSL
mechanism: SCRAM-SHA-512
caSecret: {{ $name }}-cluster-ca-cert
{{- else -}}
{{ omit .Values.kafka "namespace" | toYaml }}
{{- end -}}
{{- end }}

{{- /* The ports of Kafka's pods, as a JSON list. */ -}}
{{- define "tidemill.kafkaPorts" -}}
{{- $kafka := include "tidemill.kafka" . | fromYaml -}}
{{- $ports := list -}}
{{- range splitList "," $kafka.servers -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" (trim .) | trimPrefix ":" | default "9092" | int) -}}
{{- end -}}
{{- if $kafka.port }}{{ list (int $kafka.port) | toJson }}{{ else }}{{ uniq $ports | toJson }}{{ end -}}
{{- end }}

{{- define "tidemill.storePort" -}}
{{- $endpoint := include "tidemill.storeEndpoint" . -}}
{{- $usual := ternary 80 443 (hasPrefix "http://" $endpoint) -}}
{{- $named := regexFind ":[0-9]+$" (regexFind "//[^/]*" $endpoint) | trimPrefix ":" -}}
{{- if and .Values.store.port (not .Values.minio.enabled) }}{{ .Values.store.port | int }}{{ else }}{{ $named | default $usual }}{{ end -}}
{{- end }}

{{- define "tidemill.storeEndpoint" -}}
{{- if .Values.minio.enabled }}http://{{ include "tidemill.name" . }}-minio:9000{{ else }}{{ .Values.store.endpoint }}{{ end -}}
{{- end }}
