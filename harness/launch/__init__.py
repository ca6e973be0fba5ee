"""A sweep's members as jobs of a cluster: submitted with submitit, preempted, requeued, and shown."""
