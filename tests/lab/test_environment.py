"""What a run writes down about where it came from."""

import shutil
import subprocess
from pathlib import Path

import pytest

from lab import environment


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_sources_are_dirty_when_they_changed_and_not_when_a_run_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    assert environment.git_state() == (None, None)
    (tmp_path / "code.py").write_text("1\n")
    git("init")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "commit", "-m", "first")
    commit, dirty = environment.git_state()
    assert len(commit or "") == 40
    assert dirty is False
    (tmp_path / "runs" / "reference").mkdir(parents=True)
    (tmp_path / "runs" / "reference" / "STATUS.json").write_text("{}\n")
    assert environment.git_state() == (commit, False)
    (tmp_path / "code.py").write_text("2\n")
    assert environment.git_state() == (commit, True)
