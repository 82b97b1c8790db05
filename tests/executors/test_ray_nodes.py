"""A Ray cluster of two nodes, one of which is killed midway, makes what one process makes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Two nodes of one processor each, with an actor on each. The second node is killed, with all its processes, once a
# quarter of the work is on the disk; the first does the rest.
PROGRAM = """
import json, os, sys, threading, time
from pathlib import Path


def main(folder):
    from ray.cluster_utils import Cluster

    import probing as pb

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    killed = []

    def kill_when(is_time):
        while not is_time():
            time.sleep(0.02)
        cluster.remove_node(second, allow_graceful=False)
        killed.append(time.time())

    model = pb.LanguageModel.load("probing:reference")
    corpus = pb.Corpus.read("probing:reference")
    extraction = {"sites": "resid.*", "shard_bytes": 200_000, "progress": False}
    training = {"task": "upos", "probes": ["linear", "mlp:hidden=8,max_epochs=2"], "controls": ["word_type:draws=2"]}
    ray = {"executor": "ray", "workers": 2, "threads": 1}

    one = pb.extract(model, corpus, to=folder / "one", threads=1, **extraction)
    planned = one.shards_planned
    watch = threading.Thread(target=kill_when, args=(lambda: len(list((folder / "two").rglob("*.h5"))) > planned // 4,))
    watch.start()
    two = pb.extract(model, corpus, to=folder / "two", **ray, **extraction)
    ended = time.time()
    watch.join()
    said = {"shards": planned, "same_content": one.content_id == two.content_id, "damage": two.verify()}
    said["killed_midway"] = killed[0] < ended

    second = cluster.add_node(num_cpus=1)
    pb.train(one, corpus, to=folder / "inline", threads=1, progress=False, **training)
    units = len(list((folder / "inline" / "units").iterdir()))
    watch = threading.Thread(
        target=kill_when, args=(lambda: len(list((folder / "ray" / "units").glob("*"))) > units // 4,)
    )
    watch.start()
    pb.train(one, corpus, to=folder / "ray", progress=False, **ray, **training)
    ended = time.time()
    watch.join()
    same = [(folder / name / "results.jsonl").read_bytes() for name in ("inline", "ray")]
    said |= {"units": units, "same_results": same[0] == same[1], "killed_in_training": killed[1] < ended}
    print(json.dumps(said))
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_two_nodes_of_which_one_is_killed_make_the_bytes_of_one_process(tmp_path: Path) -> None:
    script = tmp_path / "nodes.py"
    script.write_text(PROGRAM, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["shards"] >= 8 and said["units"] >= 8
    assert said["killed_midway"] and said["killed_in_training"]
    assert said["same_content"] and said["damage"] == [] and said["same_results"]
