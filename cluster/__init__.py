"""What `raylab cluster` fills in and checks against: data, read through importlib.resources.

    aws.yaml, azure.yaml, gcp.yaml, local.yaml    templates for `ray up`
    raycluster.yaml, rayjob.yaml                  templates of KubeRay's manifests
    machines.yaml                                 the machine of each provider for each type of GPU
    kuberay_schema.json                           the schema of KubeRay's RayCluster and RayJob

A ${name} in a template stands for a value; `raylab cluster render` gives it.
"""
