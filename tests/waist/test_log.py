"""metrics.csv: continued, never torn, never doubled; the window of means that survives in checkpoints."""

import pytest

from backends.errors import InputError
from backends.training.log import MetricsLog, Window, read


def rows(path):
    return [int(row["step"]) for row in read(path)]


def test_rows_are_appended_under_fixed_columns(tmp_path):
    path = tmp_path / "run" / "metrics.csv"
    log = MetricsLog(path, ["a", "b"], 0)
    log.row({"step": 1, "epoch": 1, "loss": 1 / 3, "a": 2.0, "b": 1e-9, "not a column": 5.0})
    log.row({"step": 1, "epoch": 1, "val_loss": 0.5})
    assert path.read_text().splitlines() == [
        "step,epoch,loss,val_loss,learning_rate,grad_norm,audio_s_per_s,peak_memory_gb,a,b",
        "1,1,0.33333333,,,,,,2,1e-09",
        "1,1,,0.5,,,,,,",
    ]
    assert read(path)[1] == {"step": 1.0, "epoch": 1.0, "val_loss": 0.5}


def test_a_resumed_log_keeps_the_rows_of_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, [], 0)
    for step in (1, 2, 2, 3):
        log.row({"step": step, "epoch": 1, "loss": 0.1 * step})
    assert log.rows == 4
    before = path.read_text().splitlines()
    resumed = MetricsLog(path, [], 3)
    assert resumed.rows == 3
    assert path.read_text().splitlines() == before[:4]
    resumed.row({"step": 3, "epoch": 1, "loss": 0.5})
    assert rows(path) == [1, 2, 2, 3]


def test_a_fresh_run_starts_its_log_anew(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsLog(path, [], 0).row({"step": 1, "epoch": 1})
    assert MetricsLog(path, [], 0).rows == 0
    assert rows(path) == []


def test_a_row_cut_short_by_a_crash_ends_the_log(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, ["a"], 0)
    log.row({"step": 1, "epoch": 1, "a": 1.0})
    whole = path.read_text()
    path.write_text(whole + "2,1,0.5,,1e-")
    assert rows(path) == [1]
    assert MetricsLog(path, ["a"], 2).rows == 1
    assert path.read_text() == whole


@pytest.mark.parametrize("damage", ["1,1,abc,,,,,,\n", "1,1,0.5,,,,,,,,7,8\n", "\0\0\0\n"])
def test_a_damaged_row_ends_the_log(tmp_path, damage):
    log = MetricsLog(tmp_path / "metrics.csv", ("a",), 0)
    log.row({"step": 1, "epoch": 1, "loss": 0.5})
    with log.path.open("a", encoding="utf-8") as file:
        file.write(damage)
    assert read(log.path) == [{"step": 1, "epoch": 1, "loss": 0.5}]


def test_a_disk_that_refuses_is_one_line(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv", [], 0)
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(InputError, match=r"metrics.csv: cannot be written .*the checkpoints are intact"):
        log.row({"step": 1})


def test_window_is_a_mean_that_continues():
    window = Window()
    for loss in (1.0, 2.0):
        window.add({"loss": loss})
    resumed = Window(window.sums, window.steps)
    resumed.add({"loss": 6.0})
    assert resumed.mean() == {"loss": 3.0}
    assert resumed.steps == 0
    resumed.add({"loss": 5.0})
    assert resumed.mean() == {"loss": 5.0}
