from types import SimpleNamespace

import pytest

from utils.training import progress
from utils.training.progress import Bar, Clock


def test_long_work_without_a_terminal_writes_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    assert list(Bar(iter("abc"), desc="decoding", total=3, unit="img")) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split("  ")[:2] for line in err.splitlines()] == [["decoding", f"{n}/3 img"] for n in range(4)]


def test_short_work_and_other_processes_stay_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    list(Bar(range(3), desc="short"))
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    list(Bar(range(3), desc="of another process"))
    assert capsys.readouterr() == ("", "")


def test_what_is_left_follows_the_pace_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr(progress, "time", now)
    clock = Clock(0.5)  # continued in the middle
    assert clock.left(0.5) is None
    now.monotonic = lambda: 130.0
    assert clock.left(0.75) == pytest.approx(30)
