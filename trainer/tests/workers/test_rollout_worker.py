"""The worker as a Ray actor."""

import urllib.request
from pathlib import Path

import pytest
from rljob.types import Sample, SamplingParams
from rljob_trainer.models import build_model, load_tokenizer
from rljob_trainer.quickstart.tokenizer import write_tokenizer
from rljob_trainer.weights.arrays import to_array
from rljob_trainer.weights.digest import weights_digest
from rljob_trainer.workers.placement import start_local_ray
from rljob_trainer.workers.rollout_worker import RolloutWorker

MANIFEST = {
    "apiVersion": "rljob.io/v1alpha1",
    "kind": "RLJob",
    "metadata": {"name": "worker-test"},
    "spec": {
        "model": {
            "tokenizerPath": "tokenizer",
            "randomInit": {"hiddenSize": 32, "intermediateSize": 48, "numHiddenLayers": 1},
            "dtype": "float32",
        },
        "data": {"train": {"path": "x.jsonl"}},
        "rollout": {"engine": "torch", "maxContextLength": 64, "engineArgs": {"slots": 8}},
    },
}


@pytest.mark.ray
@pytest.mark.slow
def test_the_worker_as_an_actor(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import ray
    from rljob_api.v1alpha1.job import RLJob

    write_tokenizer(tmp_path / "tokenizer", ("home",), ("Zafo", "Miru"))
    spec = RLJob.model_validate(MANIFEST).spec.model
    tokenizer = load_tokenizer(spec, tmp_path)
    model = build_model(spec, tmp_path, tokenizer)
    weights = {name: to_array(parameter) for name, parameter in model.named_parameters()}
    digest = weights_digest(weights)
    start_local_ray(ranks=0, engines=1)
    try:
        options = {"num_cpus": 0, "max_concurrency": 8}
        worker = ray.remote(RolloutWorker).options(**options).remote(MANIFEST, str(tmp_path), 5)
        started = ray.get(worker.start.remote(), timeout=120)
        with pytest.raises(ray.exceptions.RayTaskError, match="engine 5 has no weights"):
            ray.get(worker.generate.remote([], SamplingParams()), timeout=60)
        sent = ray.put(weights)
        assert ray.get(worker.update_weights.remote(7, digest, sent), timeout=60) == digest
        samples = [Sample("Q", tokenizer.encode("What is Zafo Miru's home?"), seed=seed) for seed in range(10)]
        results = ray.get(
            worker.generate.remote(samples, SamplingParams(max_new_tokens=9, ignore_eos=True)), timeout=60
        )
        assert [len(sample.response_ids) for sample in results] == [9] * 10
        assert ray.get(worker.health.remote(), timeout=60) == {"engine": 5, "version": 7, "digest": digest}
        assert ray.get(worker.metrics.remote(), timeout=60)["generated_tokens"] == 90
        page = urllib.request.urlopen(f"http://127.0.0.1:{started['metrics_port']}/metrics", timeout=10).read().decode()
        assert 'rljob_engine_generated_tokens_total{index="5",job_name="worker-test"} 90.0' in page
        ray.get(worker.shutdown.remote(), timeout=60)
        logs = Path(ray._private.worker._global_node.get_session_dir_path(), "logs")
        assert any("engine 5 is ready" in file.read_text() for file in logs.glob("worker-*.err"))
    finally:
        ray.shutdown()
    assert "engine 5" not in "".join(capfd.readouterr())  # the terminal is the live display's
