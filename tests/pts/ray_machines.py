"""A Ray cluster of two machines with a core each, on this one: `python -m tests.pts.ray_machines`.

Prints its address. A line `kill` on standard input ends the second machine without a word, `end`
the cluster.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line != "kill\n":
            break
        cluster.remove_node(machines[1], allow_graceful=False)
    cluster.shutdown()
