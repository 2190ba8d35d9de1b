"""What a cluster is told to run: Kubernetes manifests as dicts, from one small set of settings."""
