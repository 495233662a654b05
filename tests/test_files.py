"""Files are whole or not there, and nothing is left beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attnorm.errors import UserError
from attnorm.files import cache_folder, write_json, write_text, written_whole


def test_a_file_appears_at_the_end_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.bin"
    path.write_bytes(b"old")
    with written_whole(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == path.parent, "a rename stays within one file system"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_stays_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "result.bin"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), written_whole(path) as temporary:
        json.dump({"half": 1, "no JSON": path}, temporary.open("w"))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_of_the_same_number_left_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "linked"
    with written_whole(path) as temporary:
        left = temporary
        temporary.write_text("first")
    left.write_text("left behind")
    source = tmp_path / "source"
    source.write_text("second")
    with written_whole(path) as temporary:
        temporary.hardlink_to(source)  # would be refused if the name were taken
    assert path.read_text() == "second"


def test_texts_are_utf8_and_json_is_indented(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "λ – γ")
    assert (tmp_path / "page.html").read_bytes() == "λ – γ".encode()
    write_json(tmp_path / "result.json", {"error": 1.5, "top": None})
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text) == {"error": 1.5, "top": None}
    assert text == '{\n  "error": 1.5,\n  "top": null\n}\n'


def test_a_place_that_cannot_be_written_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/result\.json cannot be written: Not a directory\."):
        write_json(tmp_path / "file" / "result.json", {})
    with pytest.raises(UserError, match=r"cannot be written: No such file or directory\."):
        write_json(tmp_path / "missing" / "result.json", {})


def test_the_cache_folder_is_the_users_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNORM_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("ATTNORM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "shared" / "attnorm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "attnorm"
