"""A signal is remembered, not obeyed at once."""

import os
import signal

import pytest

from lab.training.signals import Stopped, Stopper


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_sets_a_flag(number: int) -> None:
    with Stopper().listening() as stopper:
        assert stopper.signal is None
        os.kill(os.getpid(), number)
        assert stopper.signal == number


def test_a_check_passes_until_a_signal_has_arrived() -> None:
    with Stopper().listening() as stopper:
        stopper.check()
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Stopped, match=r"^stopped by SIGUSR1: .* the same command goes on$") as stopped:
            stopper.check()
    assert stopped.value.exit_code == 138


def test_the_first_signal_counts() -> None:
    with Stopper().listening() as stopper:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stopper.signal == signal.SIGTERM


def test_a_second_ctrl_c_ends_at_once() -> None:
    with Stopper().listening() as stopper:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stopper.signal == signal.SIGINT


def test_handlers_are_put_back_also_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with pytest.raises(ZeroDivisionError), Stopper().listening():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before
