{{/* What all objects of a part are called and found by. Call with (dict "root" $ "part" "service"). */}}
{{- define "coevo.name" -}}
{{ printf "%s-%s" .root.Release.Name .part | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "coevo.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "coevo.labels" -}}
{{ include "coevo.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{- define "coevo.metadata" -}}
name: {{ include "coevo.name" . }}
labels: {{- include "coevo.labels" . | nindent 2 }}
{{- end }}

{{/* What every pod gives up. Of the links of Services in a pod's environment, COEVO_PORT would be taken for a setting. */}}
{{- define "coevo.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
shareProcessNamespace: true # so that a SIGTERM ends a program that does not listen yet: it is not process 1
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user | default 1000 }}
  runAsGroup: {{ .user | default 1000 }}
  fsGroup: {{ .user | default 1000 }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- if .gpus }}
{{- with .root.Values.gpu.runtimeClass }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .root.Values.gpu.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.gpu.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "coevo.container" -}}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{/* Requests and limits, with so many cards. */}}
{{- define "coevo.resources" -}}
{{- $resources := deepCopy .resources }}
{{- if .gpus }}
{{- $_ := set $resources.limits .root.Values.gpu.resource (int .gpus) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* Where the queue is, and the secrets. */}}
{{- define "coevo.environment" -}}
{{- if .root.Values.queue.urlSecret -}}
- name: COEVO_REDIS_URL
  valueFrom: { secretKeyRef: { name: {{ .root.Values.queue.urlSecret }}, key: url } }
{{- else -}}
- name: COEVO_REDIS_URL
  value: redis://{{ include "coevo.name" (dict "root" .root "part" "queue") }}:6379/0
{{- end }}
{{- with .root.Values.apiKeySecret }}
- name: COEVO_API_KEY
  valueFrom: { secretKeyRef: { name: {{ . }}, key: api-key } }
{{- end }}
{{- with .root.Values.hubTokenSecret }}
- name: HF_TOKEN
  valueFrom: { secretKeyRef: { name: {{ . }}, key: token } }
{{- end }}
{{- end }}

{{- define "coevo.service-url" -}}
- name: COEVO_SERVICE_URL
  value: http://{{ include "coevo.name" (dict "root" .root "part" "service") }}:8000
{{- end }}

{{/* Where libraries keep for later what they compile and download. */}}
{{- define "coevo.home-environment" -}}
- name: HOME
  value: /home/coevo
- name: TORCHINDUCTOR_CACHE_DIR
  value: /home/coevo/.cache/torchinductor
{{- end }}

{{/* The recipe and its changes, as words of a command. */}}
{{- define "coevo.recipe" -}}
- {{ .root.Values.recipe | quote }}
{{- range .root.Values.set }}
- {{ printf "--set=%s" . | quote }}
{{- end }}
{{- end }}

{{- define "coevo.mounts" -}}
- { name: tmp, mountPath: /tmp }
- { name: home, mountPath: /home/coevo }
{{- if .root.Values.base.claim }}
- { name: base, mountPath: {{ printf "/work/%s" (required "base.folder: set it to what the recipe says as base.name" .root.Values.base.folder) }}, readOnly: true }
{{- end }}
{{- if .root.Values.data.claim }}
- { name: data, mountPath: /work/data, readOnly: true }
{{- end }}
{{- end }}

{{/* `home` is a claim's name; without one it goes with the pod. */}}
{{- define "coevo.volumes" -}}
- name: tmp
  emptyDir: {}
- name: home
{{- if .home }}
  persistentVolumeClaim: { claimName: {{ .home }} }
{{- else }}
  emptyDir: {}
{{- end }}
{{- with .root.Values.base.claim }}
- name: base
  persistentVolumeClaim: { claimName: {{ . }}, readOnly: true }
{{- end }}
{{- with .root.Values.data.claim }}
- name: data
  persistentVolumeClaim: { claimName: {{ . }}, readOnly: true }
{{- end }}
{{- end }}

{{- define "coevo.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .root.Values.storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests: { storage: {{ .size }} }
{{- end }}
