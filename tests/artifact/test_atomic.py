"""Atomic writes: a file or folder appears as a whole."""

import errno
import os
import stat

import pytest

from sqs_jax.artifact.atomic import replacing, replacing_folder, write_atomically


def test_a_file_appears_only_when_complete(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with replacing(str(path)) as file:
        file.write(b"ne")
        file.flush()
        assert path.read_bytes() == b"old"
        file.write(b"w")
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o640
    write_atomically(str(path), b"newer")
    assert path.read_bytes() == b"newer" and os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, GeneratorExit])
def test_a_failure_in_the_block_keeps_the_old_content(error, tmp_path):
    path = tmp_path / "m"
    for before in ([], ["m"]):
        with pytest.raises(error), replacing(str(path)) as file:
            file.write(b"new")
            raise error
        with pytest.raises(error), replacing_folder(str(tmp_path / "folder")) as folder:
            os.mkdir(os.path.join(folder, "inner"))
            raise error
        assert os.listdir(tmp_path) == before
        path.write_bytes(b"old")


@pytest.mark.parametrize("context", [replacing, replacing_folder])
def test_errors_name_the_right_file(context, tmp_path):
    """A failed write gets the target's name; errors of other files keep their names."""
    path = tmp_path / "m"
    with pytest.raises(OSError, match=r"No space.*untouched.*m'") as error, context(str(path)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.filename == str(path) and error.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError) as error, context(str(path)):
        os.stat(tmp_path / "other")
    assert error.value.filename == str(tmp_path / "other") and "save" not in str(error.value)
    assert os.listdir(tmp_path) == []
    nowhere = str(tmp_path / "no" / "m")
    with pytest.raises(FileNotFoundError, match=r"create it first.*no/m"), context(nowhere):
        raise AssertionError("not reached")


def test_a_folder_appears_only_when_complete(tmp_path):
    path = tmp_path / "folder"
    for mode in (0o755, 0o700):
        with replacing_folder(str(path)) as temporary:
            os.mkdir(os.path.join(temporary, "inner"))
            write_atomically(os.path.join(temporary, "inner", "a"), b"1")
            assert not path.exists() or not os.listdir(path)
        assert (path / "inner" / "a").read_bytes() == b"1" and os.listdir(tmp_path) == ["folder"]
        if mode == 0o700:
            assert stat.S_IMODE(path.stat().st_mode) == mode
        (path / "inner" / "a").unlink()
        (path / "inner").rmdir()
        path.chmod(0o700)


def test_a_folder_replaces_nothing(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"mine")
    says = r"there is a file.*give the name of a new folder.*m'"
    with pytest.raises(FileExistsError, match=says), replacing_folder(str(path)):
        raise AssertionError("not reached")
    assert path.read_bytes() == b"mine"
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="name of a new folder"), replacing_folder(str(path)):
        (path / "meanwhile").touch()
    assert os.listdir(tmp_path) == ["m"] and os.listdir(path) == ["meanwhile"]
    with pytest.raises(FileExistsError, match="not empty"), replacing_folder(str(path)):
        raise AssertionError("not reached")


def test_a_link_to_an_empty_folder_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with replacing_folder(str(tmp_path / "link")) as temporary:
        write_atomically(os.path.join(temporary, "a"), b"1")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "a").read_bytes() == b"1"
