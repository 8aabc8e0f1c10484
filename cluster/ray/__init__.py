"""A sweep on a Ray cluster that is already there: a cluster file, a Kubernetes manifest and a submitter of jobs."""

from cluster.ray.job import Job, render

__all__ = ["Job", "render"]
