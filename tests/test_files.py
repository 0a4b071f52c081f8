import hashlib
import os
from pathlib import Path

import pytest

from efftrain.errors import MachineError
from efftrain.files import sha256, write_atomic, write_text


def test_a_file_is_written_with_its_folder(tmp_path: Path):
    write_text(tmp_path / "new" / "file.txt", "ü")
    assert (tmp_path / "new" / "file.txt").read_text(encoding="utf-8") == "ü"


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def tear(part: Path) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(MachineError, match=r"cannot write .*file\.txt: No space left on device"):
        write_atomic(path, tear)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def look(part: Path) -> None:
        part.write_text("new")
        assert part.parent == path.parent, "a rename across file systems would be a copy"
        assert path.read_text() == "old"

    write_atomic(path, look)
    assert path.read_text() == "new"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        write_text(tmp_path / "file" / "below" / "x.txt", "")


def test_the_digest_is_that_of_the_content(tmp_path: Path):
    content = os.urandom(3_000_000)
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_a_file_is_as_readable_as_the_umask_says(tmp_path: Path):
    (tmp_path / "plain").write_text("")

    def write_privately(part: Path) -> None:
        part.unlink()
        part.write_text("x")
        part.chmod(0o600)

    write_atomic(tmp_path / "written", write_privately)
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode
