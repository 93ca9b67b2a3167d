"""RLJobs by the thousand beside the same RayJobs applied bare: docs/scale.md."""
