"""Going on under circumstances: checkpoints on a bucket, shards that cannot be reached, a signal that comes twice."""

import signal
from functools import partial

import pytest

from must.base import storage
from must.base.exits import ending_on_sigterm
from must.base.processes import METHOD
from must.data.loading.reader import ShardReader
from must.method.distributed.process_group import StopSignal
from must.method.train.checkpoint import Checkpoints
from must.method.train.trainer import train
from tests.method.train.lives import difference, sigterm_when, training

STEPS = 12
config = partial(training, epochs=4, batch_size=50, workers=0, checkpoint_every=2, seed=1, log_every=2)


@pytest.mark.slow
def test_a_retry_on_another_machine_goes_on_from_the_bucket(digits, bucket_server, tmp_path):
    uri = bucket_server.uri + "/run"
    with (
        sigterm_when(lambda: storage.exists(f"{uri}/LAST")),
        ending_on_sigterm("train"),
        pytest.raises(SystemExit) as stopped,
    ):
        train(config(digits, tmp_path / "first", checkpoints=uri))
    assert stopped.value.code == 75
    assert 0 < Checkpoints(uri).steps()[-1] < STEPS
    train(config(digits, tmp_path / "second", checkpoints=uri))
    train(config(digits, tmp_path / "undisturbed"))
    assert difference(tmp_path / "second", tmp_path / "undisturbed") == 0.0


def test_a_signal_that_arrives_twice_is_one_signal():
    """Ctrl-C reaches the processes from the terminal, and again from torchrun, which hands it on."""
    with ending_on_sigterm("train"):
        stop = StopSignal()
        try:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert stop.received
        finally:
            stop.restore()


def test_shards_that_cannot_be_reached_end_the_run_resumably(digits, tmp_path, monkeypatch, capsys):
    """The loaders' error travels between processes as a traceback; the user sees a line."""

    def image(self, number):
        raise storage.UnreachableError("gs://bucket/train-000000.tar: the server could not be reached for 300 s: 503")

    monkeypatch.setattr(ShardReader, "image", image)
    monkeypatch.setenv(METHOD, "fork")  # loaders see what is patched here
    with pytest.raises(SystemExit) as stopped:
        train(config(digits, tmp_path / "run", workers=1))
    assert stopped.value.code == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "must train: gs://bucket/train-000000.tar: the server could not be reached for 300 s: 503; run"
    )
