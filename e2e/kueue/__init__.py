"""Jobs in a queue of the real Kueue, with the real KubeRay and scheduler, on nodes and pods that kwok plays."""
