"""What the driver says to a Kubernetes cluster and hears from it: progress, lease, requests.

Nothing here is needed for training: without the cluster's environment variables each part is absent, and while the
apiserver does not answer, training goes on.
"""
