"""The loop: what a run leaves, and that resuming, accumulating and loading in parallel do not change its result."""

from __future__ import annotations

import errno
import json
import signal

import pytest
import torch
from toy_training import ToyData, ToyModel, evaluate, train

from automoe.engine import checkpoint
from automoe.engine.runlog import read_metrics
from automoe.errors import CheckpointError, ConfigError, TrainingError, WriteError
from automoe.stopping import Interrupted


def weights(run_dir, name="last.pth"):
    payload = checkpoint.load(run_dir / name)
    return payload["model"] if name == "best.pth" else payload["module"]


def assert_same_run(one, other):
    """Bit for bit: weights, average, optimizer, best model, metrics and losses."""
    for name, keys in (("last.pth", ("module", "ema", "optimizer")), ("best.pth", ("model",))):
        first, second = checkpoint.load(one / name), checkpoint.load(other / name)
        for key in keys:
            torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)
    kept = ("epoch", "step", "metrics", "losses", "best")
    lines = [[{key: line[key] for key in kept} for line in read_metrics(folder)] for folder in (one, other)]
    assert lines[0] == lines[1]


class CrashError(Exception):
    pass


def stop_evaluation(at: int):
    """An evaluation that fails the `at`-th time, as a crash between two saves would."""
    count = iter(range(1, 100))

    def crash(model, dist):
        if next(count) == at:
            raise CrashError
        return evaluate(model, dist)

    return crash


def send_sigterm_in_epoch(epoch: int, sample: int):
    """A data set's `__getitem__` that sends SIGTERM to this process while it makes the epoch's `sample`-th item."""
    original, made = ToyData.__getitem__, iter(range(1, 1000))

    def getitem(self, key):
        if key[0] == epoch and next(made) == sample:
            signal.raise_signal(signal.SIGTERM)
        return original(self, key)

    return getitem


def test_a_run_leaves_everything_needed_to_understand_and_repeat_it(tmp_path, capsys):
    result = train(tmp_path, meta={"dataset_fingerprint": "abc"})
    printed = capsys.readouterr().out
    assert "Global batch size 4: 4 a process x 1 process x 1 accumulated" in printed
    assert "not scaled" in printed
    assert (result.steps, result.metrics["undefined"]) == (18, None)

    best = checkpoint.load(tmp_path / "best.pth")
    assert best["metric"] == {"name": "score", "mode": "max", "value": result.best}
    assert best["classes"] == ["a", "b"]
    assert best["config"] == {"toy": True}
    assert "optimizer" not in best
    assert {"torch", "python", "timm", "automoe"} <= best["versions"].keys()
    checkpoint.load_weights(ToyModel(0.0, True), best["model"])

    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["state"], manifest["seed"], manifest["dataset_fingerprint"]) == ("finished", 5, "abc")
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [6, 12, 18]
    assert {"metrics", "losses", "seconds", "images_per_second", "data_wait"} <= lines[0].keys()
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))


def test_a_finished_run_is_not_run_again(tmp_path, capsys):
    first = train(tmp_path)
    before = (tmp_path / "last.pth").stat().st_mtime_ns
    assert train(tmp_path, evaluate=None) == first
    assert "Already finished" in capsys.readouterr().out
    assert (tmp_path / "last.pth").stat().st_mtime_ns == before


def test_a_finished_run_goes_on_when_more_epochs_are_asked_for(tmp_path, capsys):
    train(tmp_path)
    assert train(tmp_path, epochs=4).steps == 24
    assert "Going on with epochs 4 (it was 3)" in capsys.readouterr().out


def test_starting_anew_destroys_nothing(tmp_path, capsys):
    train(tmp_path, epochs=1)
    old = (tmp_path / "best.pth").read_bytes()
    train(tmp_path, epochs=1, resume="never", seed=6)
    assert "Starting anew" in capsys.readouterr().out
    assert (tmp_path / "old-1" / "best.pth").read_bytes() == old
    assert [line["step"] for line in read_metrics(tmp_path)] == [6]


@pytest.mark.parametrize("ema_decay", [0.99, 0.0])
def test_sigterm_saves_and_the_resumed_run_has_the_same_bits(tmp_path, capsys, monkeypatch, ema_decay):
    train(tmp_path / "whole", ema_decay=ema_decay)
    monkeypatch.setattr(ToyData, "__getitem__", send_sigterm_in_epoch(1, sample=3 * 4))
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "parts", ema_decay=ema_decay, resume_command="bash again.sh")
    monkeypatch.undo()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "Go on with: bash again.sh" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "parts" / "last.pth")["progress"]["step"] == 9
    assert json.loads((tmp_path / "parts" / "manifest.json").read_text())["state"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    train(tmp_path / "parts", ema_decay=ema_decay)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    manifest = json.loads((tmp_path / "parts" / "manifest.json").read_text())
    assert [part["step"] for part in manifest["resumed"]] == [9]


def test_a_signal_during_the_last_evaluation_is_heard(tmp_path, capsys):
    """The pipeline must not go on to its next task; what was evaluated is kept."""
    seen = []

    def signalled(model, dist):
        seen.append(1)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(model, dist)

    with pytest.raises(Interrupted) as stopped:
        train(tmp_path, evaluate=signalled)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert [line["step"] for line in read_metrics(tmp_path)] == [6, 12, 18]
    assert "step 18 of 18 is saved" in capsys.readouterr().out
    train(tmp_path)
    assert "Already finished" in capsys.readouterr().out


def test_a_failed_evaluation_is_done_again(tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(CrashError):
        train(tmp_path / "parts", evaluate=stop_evaluation(at=2))
    assert json.loads((tmp_path / "parts" / "manifest.json").read_text())["state"] == "failed"
    assert checkpoint.load(tmp_path / "parts" / "last.pth")["progress"]["step"] == 12
    train(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_can_go_on_from_another_folder(tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(CrashError):
        train(tmp_path / "first", evaluate=stop_evaluation(at=2))
    train(tmp_path / "second", resume=str(tmp_path / "first" / "last.pth"))
    torch.testing.assert_close(weights(tmp_path / "second"), weights(tmp_path / "whole"), rtol=0, atol=0)
    assert_same_run(tmp_path / "second", tmp_path / "whole")
    train(tmp_path / "copy", resume=str(tmp_path / "whole"))  # finished: its best weights come along
    torch.testing.assert_close(weights(tmp_path / "copy", "best.pth"), weights(tmp_path / "whole", "best.pth"))
    with pytest.raises(CheckpointError, match="holds a model but not the state"):
        train(tmp_path / "third", resume=str(tmp_path / "whole" / "best.pth"))
    with pytest.raises(CheckpointError, match="there is no"):
        train(tmp_path / "third", resume=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 6}, "seed 5, this command has 6"),
        ({"batch_size": 5}, r"batch_size 4, .* was 4 and is 5"),
        ({"length": 27}, "dataset_length 26"),
        ({"meta": {"dataset_fingerprint": "b", "model_config": {"width": 1}}}, "dataset_fingerprint a"),
        ({"meta": {"dataset_fingerprint": "a", "model_config": {"width": 2}}}, "model_config.width 1"),
        ({"ema_decay": 0.0}, "averaged_weights"),
    ],
)
def test_a_run_does_not_go_on_as_another(tmp_path_factory, half_run, change, named):
    with pytest.raises(ConfigError, match=named) as error:
        train(half_run, **{"meta": {"dataset_fingerprint": "a", "model_config": {"width": 1}}, **change})
    assert "--resume never" in str(error.value)


@pytest.fixture(scope="module")
def half_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    meta = {"dataset_fingerprint": "a", "model_config": {"width": 1}}
    with pytest.raises(CrashError):
        train(folder, meta=meta, evaluate=stop_evaluation(at=2))
    return folder


def test_results_do_not_depend_on_the_number_of_workers(tmp_path):
    for workers in (0, 2):
        train(tmp_path / str(workers), num_workers=workers, epochs=2)
    assert_same_run(tmp_path / "0", tmp_path / "2")


def test_two_accumulated_batches_equal_one_of_twice_the_size(tmp_path):
    plain = {"dropout": 0.0, "batch_norm": False}
    train(tmp_path / "two", batch_size=4, accumulate=2, **plain)
    train(tmp_path / "one", batch_size=8, **plain)
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-4, atol=1e-6)


def test_a_non_finite_loss_names_the_samples_and_changes_nothing(tmp_path):
    with pytest.raises(TrainingError) as error:
        train(tmp_path, poison=7, save_steps=1, accumulate=2, batch_size=2)
    assert "'sample-7'" in str(error.value)
    assert "loss nan" in str(error.value)
    # Of the step's two micro-batches only the guilty one is named.
    assert str(error.value).count("sample-") == 2
    assert json.loads((tmp_path / "manifest.json").read_text())["state"] == "failed"
    if (tmp_path / "last.pth").exists():
        assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


def test_max_steps_ends_early_with_an_evaluation(tmp_path):
    result = train(tmp_path, max_steps=8)
    assert result.steps == 8
    assert [line["step"] for line in read_metrics(tmp_path)] == [6, 8]


def test_fewer_steps_than_are_done_are_evaluated(tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path, evaluate=stop_evaluation(at=2))
    assert checkpoint.load(tmp_path / "last.pth")["progress"]["step"] == 12
    result = train(tmp_path, max_steps=8)
    assert result.steps == 12
    assert [line["step"] for line in read_metrics(tmp_path)] == [6, 12]


def test_a_disk_that_fills_under_tensorboard_is_one_sentence(tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    monkeypatch.setattr(SummaryWriter, "close", full)
    with pytest.raises(WriteError, match=r"The disk is full: .*events"):
        train(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["state"] == "failed"


def test_best_is_the_best_and_undefined_never_is(tmp_path):
    scores = iter([None, 0.3, 0.7, None, 0.5])
    result = train(tmp_path, epochs=5, evaluate=lambda model, dist: {"score": next(scores)})
    assert (result.best, result.best_step) == (0.7, 18)
    assert checkpoint.load(tmp_path / "best.pth")["progress"]["step"] == 18


def test_smaller_can_be_better(tmp_path):
    scores = iter([0.3, 0.1, 0.2])
    assert train(tmp_path, metric_mode="min", evaluate=lambda model, dist: {"score": next(scores)}).best_step == 12


def test_a_metric_that_is_always_undefined_leaves_the_last_weights(tmp_path):
    train(tmp_path, evaluate=lambda model, dist: {"score": None})
    assert checkpoint.load(tmp_path / "best.pth")["progress"]["step"] == 18


def test_a_metric_that_is_not_evaluated_is_named(tmp_path):
    with pytest.raises(ConfigError, match="metric is 'AP', but the evaluation gives: score, undefined"):
        train(tmp_path, metric="AP")


def test_evaluation_sees_the_averaged_model_in_eval_mode(tmp_path):
    modes = []

    def look(model, dist):
        modes.append((model.training, torch.is_grad_enabled()))
        return {"score": 0.0}

    for decay in (0.9, 0.0):
        train(tmp_path / str(decay), ema_decay=decay, epochs=1, evaluate=look)
    assert modes == [(False, False), (False, False)]
    assert not torch.equal(
        weights(tmp_path / "0.9", "best.pth")["head.weight"], weights(tmp_path / "0.9")["model.head.weight"]
    )
    torch.testing.assert_close(
        weights(tmp_path / "0.0", "best.pth")["head.weight"],
        weights(tmp_path / "0.0")["model.head.weight"],
        rtol=0,
        atol=0,
    )


def test_reserved_keys_are_the_engines(tmp_path):
    with pytest.raises(ValueError, match="model"):
        train(tmp_path, meta={"model": {}})
