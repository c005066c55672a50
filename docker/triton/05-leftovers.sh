# Sourced by the base image's entry point, before Triton starts. What a Triton that was killed leaves behind outlives its
# container where a volume of the pod holds it: shared memory of its models' processes, the probe's note of them, and the
# copies of models that came from object storage.
rm -f /dev/shm/triton_python_backend_shm_region_* /tmp/multsd-model-processes.json
rm -rf /tmp/folder??????
