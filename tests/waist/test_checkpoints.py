"""Checkpoints: committed whole or not at all, verified, rotated."""

import json
import shutil

import pytest
from kill import Kill, Killed

from backends.errors import InputError
from backends.training.checkpoints import MANIFEST, Checkpoints, damage

CONTENT = {"weights.safetensors": b"w" * 5000, "optimizer.safetensors": b"o" * 9000, "trainer.json": b'{"step": 1}'}


def write(directory, content=CONTENT):
    for name, value in content.items():
        (directory / name).write_bytes(value)


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, write)


def steps(checkpoints):
    return [int(path.name.removeprefix("step_")) for path in checkpoints.all()]


def test_a_checkpoint_holds_its_files_and_their_hashes(tmp_path):
    path = Checkpoints(tmp_path).save(7, write)
    assert path == tmp_path / "step_7"
    assert {file.name for file in path.iterdir()} == {*CONTENT, MANIFEST}
    manifest = json.loads((path / MANIFEST).read_text())
    assert {name: entry["bytes"] for name, entry in manifest.items()} == {name: len(v) for name, v in CONTENT.items()}
    assert damage(path) is None


def test_newest_is_by_number_not_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=3)
    save(checkpoints, 9, 10, 100)
    assert checkpoints.newest() == tmp_path / "step_100"
    assert steps(checkpoints) == [9, 10, 100]


def test_keeps_the_last(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for step, expected in ((1, [1]), (2, [1, 2]), (3, [2, 3]), (10, [3, 10])):
        save(checkpoints, step)
        assert steps(checkpoints) == expected


def test_saving_a_step_twice_writes_once(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 5)
    before = (tmp_path / "step_5" / MANIFEST).stat().st_mtime_ns
    checkpoints.save(5, lambda directory: pytest.fail("written again"))
    assert (tmp_path / "step_5" / MANIFEST).stat().st_mtime_ns == before


DAMAGES = {
    "flipped bit": lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    "flipped first byte": lambda data: bytes([data[0] ^ 0xFF]) + data[1:],
    "truncated": lambda data: data[:-1],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("file", [*CONTENT, MANIFEST])
def test_damage_is_found_and_named_and_the_previous_one_is_used(tmp_path, file, kind):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, 2)
    victim = tmp_path / "step_2" / file
    data = victim.read_bytes()
    changed = DAMAGES[kind](data if len(data) > 100 else data * 20)
    victim.write_bytes(changed)
    said = []
    found = checkpoints.newest(said.append)
    assert found == tmp_path / "step_1"
    (line,) = said
    assert line.startswith(f"passing over {tmp_path / 'step_2'}: ")
    assert file in line or file == MANIFEST  # a changed manifest may also contradict a file


def test_every_flipped_byte_of_the_manifest_is_harmless_or_found(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    manifest = tmp_path / "step_1" / MANIFEST
    data, meaning = manifest.read_bytes(), json.loads(manifest.read_text())
    for index in range(len(data)):
        manifest.write_bytes(data[:index] + bytes([data[index] ^ 0x04]) + data[index + 1 :])
        if damage(manifest.parent) is None:
            assert json.loads(manifest.read_text()) == meaning
    assert damage(manifest.parent) is not None or json.loads(manifest.read_text()) == meaning


def test_a_missing_file_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    (tmp_path / "step_1" / "trainer.json").unlink()
    assert damage(tmp_path / "step_1") == "trainer.json is missing"
    with pytest.raises(InputError, match="step_1: trainer.json is missing"):
        checkpoints.newest(pytest.fail)


def test_no_whole_checkpoint_is_an_error_that_names_each(tmp_path):
    """Starting over would replace what the run has exported."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.newest(pytest.fail) is None
    save(checkpoints, 1, 2)
    (checkpoints.directory / "step_1" / "trainer.json").unlink()
    (checkpoints.directory / "step_2" / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError) as refused:
        checkpoints.newest(pytest.fail)
    assert str(refused.value) == (
        f"{checkpoints.directory}: every checkpoint is damaged (step_2: weights.safetensors is 7 bytes, was 5000 when "
        "saved; step_1: trainer.json is missing): restore them, give another --output-dir, or --no-resume to start over"
    )


def test_damaged_newer_ones_do_not_push_out_good_ones(tmp_path):
    """Continuing from 2 after 3 was damaged: the next save must not count 3 among the last that are kept."""
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    save(checkpoints, 2)
    shutil.copytree(tmp_path / "step_2", tmp_path / "step_9")
    (tmp_path / "step_9" / "weights.safetensors").write_bytes(b"damaged")
    assert checkpoints.newest(lambda line: None) == tmp_path / "step_2"
    save(checkpoints, 3)
    assert steps(checkpoints) == [3]
    assert checkpoints.newest() == tmp_path / "step_3"


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    (tmp_path / "step_1" / "weights.safetensors").write_bytes(b"damaged")
    save(checkpoints, 1)
    assert damage(tmp_path / "step_1") is None


def test_unfinished_ones_are_removed_at_the_start(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    (tmp_path / "step_2.tmp").mkdir()
    write(tmp_path / "step_2.tmp")
    assert checkpoints.newest() == tmp_path / "step_1"
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


def test_clear(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.clear()
    save(checkpoints, 1)
    checkpoints.clear()
    assert checkpoints.newest() is None


def killed_saves(monkeypatch, tmp_path, damaged=False):
    """Yield, for every point of a save, the checkpoints that a kill at that point leaves behind."""
    at = 0
    while True:
        at += 1
        directory = tmp_path / str(at)
        checkpoints = Checkpoints(directory, keep_last=1)
        save(checkpoints, 1)
        if damaged:
            shutil.copytree(directory / "step_1", directory / "step_2")
            (directory / "step_2" / "weights.safetensors").write_bytes(b"damaged")
        with monkeypatch.context() as patch:
            kill = Kill(patch, at)
            try:
                save(checkpoints, 2)
            except Killed:
                pass
            else:
                return
        yield kill, checkpoints


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """Power loss: three files, the manifest and their directory before the rename, the folders around it after."""
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        kill = Kill(patch, at=0)
        save(checkpoints, 1)
    operations = [name for name in kill.log if name in ("fsync", "replace")]
    assert operations == ["fsync"] * 5 + ["replace"] + ["fsync"] * 2


@pytest.mark.parametrize("damaged", [False, True])
def test_killed_at_any_point_of_a_save(tmp_path, monkeypatch, damaged):
    """Whatever is left, one whole checkpoint is found: the old one until the rename, the new one from there on."""
    committed, seen = False, 0
    for kill, checkpoints in killed_saves(monkeypatch, tmp_path, damaged):
        seen += 1
        newest = checkpoints.newest(lambda line: None)
        assert newest is not None, kill.log
        assert damage(newest) is None
        assert {name: (newest / name).read_bytes() for name in CONTENT} == CONTENT
        committed = "replace" in kill.log[:-1]
        assert newest.name == ("step_2" if committed else "step_1"), kill.log
        save(checkpoints, 2, 3)  # and the run goes on
        assert steps(checkpoints) == [3]
    assert seen > 15
    assert committed


def test_a_disk_that_refuses_is_one_line_and_leaves_the_previous_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)

    def full(directory):
        write(directory)
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"step_2: cannot save a checkpoint \(No space left on device\)"):
        checkpoints.save(2, full)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
    assert checkpoints.newest() == tmp_path / "step_1"
