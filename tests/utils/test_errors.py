import pytest

from utils.errors import LONGEST, UserError, fail, library_errors


def test_a_long_message_keeps_its_beginning_and_its_advice() -> None:
    path = "/data/" + "folder/" * 300 + "last.ckpt"
    message = str(UserError(f"ckpt_path: {path} has no 'config' ({'x' * 50_000_000}); give a .ckpt file of trainer.py"))
    assert len(message) <= LONGEST
    assert message.startswith("ckpt_path: /data/folder/")
    assert "last.ckpt has no 'config'" in message
    assert message.endswith("give a .ckpt file of trainer.py")


def test_a_long_message_of_short_words_loses_its_middle() -> None:
    message = str(UserError("begins here " + "and goes on " * 1000 + "and ends here"))
    assert len(message) == LONGEST
    assert message.startswith("begins here ")
    assert message.endswith("and ends here")


def test_a_message_is_one_line_that_no_terminal_obeys() -> None:
    message = str(UserError("a\nb\r\n  c \x1b[31m\u202e\u200b\udc80 \u1ec7 \U0001f600"))
    assert message == r"a b c \x1b[31m\u202e\u200b\udc80 " + "\u1ec7 \U0001f600"
    message.encode()


def test_what_ends_a_process_is_as_short(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail("x" * 10_000)
    assert len(capsys.readouterr().err) <= len("error: \n") + LONGEST


def test_errors_of_libraries_are_sentences_and_not_advice_to_run_code() -> None:
    with (
        pytest.raises(UserError, match=r"^a.json is no model \(KeyError\); expected one$"),
        library_errors("a.json is no model", "expected one"),
    ):
        raise KeyError
    with pytest.raises(UserError, match="it names code of its own, which is not run"), library_errors("a", "b"):
        raise ValueError("please pass the argument `trust_remote_code=True` to allow custom code to be run")
    with pytest.raises(KeyboardInterrupt), library_errors("a", "b"):
        raise KeyboardInterrupt
