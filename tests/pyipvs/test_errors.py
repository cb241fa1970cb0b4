"""Errors: which class, which words, and what to do."""

from __future__ import annotations

import copy
import errno
import gc
import pickle
import sys

import pytest

from pyipvs import (
    AlreadyExists,
    BatchError,
    DaemonNotFound,
    DeleteService,
    DestinationNotFound,
    Failure,
    IPVSError,
    PermissionDenied,
    SchedulerNotFound,
    ServiceKey,
    ServiceNotFound,
    TimedOut,
)
from pyipvs.errors import error_for


@pytest.mark.parametrize(
    ("code", "subject", "kind"),
    [
        (errno.ESRCH, "service", ServiceNotFound),
        (errno.ESRCH, "destination", ServiceNotFound),
        (errno.ENOENT, "service", SchedulerNotFound),
        (errno.ENOENT, "destination", DestinationNotFound),
        (errno.ESRCH, "daemon", DaemonNotFound),
        (errno.ENOENT, "table", IPVSError),
        (errno.EEXIST, "destination", AlreadyExists),
        (errno.EPERM, "service", PermissionDenied),
        (errno.ETIMEDOUT, "service", TimedOut),
        (errno.ENOMEM, "service", IPVSError),
    ],
)
def test_an_errno_becomes_the_class_for_what_to_do_next(code: int, subject: str, kind: type) -> None:
    error = error_for("verb", code, "thing", subject)
    assert type(error) is kind
    assert isinstance(error, OSError)
    assert (error.errno, error.operation, error.what) == (code, "verb", "thing")


def test_the_text_names_operation_object_cause_and_errno() -> None:
    error = error_for("add destination", errno.ESRCH, "10.0.0.2:80 to tcp/10.0.0.1:80", "destination")
    assert str(error) == "add destination 10.0.0.2:80 to tcp/10.0.0.1:80: no such service (ESRCH)"


def test_an_errno_without_words_of_ours_has_the_systems() -> None:
    error = error_for("flush", errno.ENOMEM, "", "service")
    assert str(error) == "flush: Cannot allocate memory (ENOMEM)"


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EPERM, "CAP_NET_ADMIN"),
        (errno.ETIMEDOUT, "read the table"),
        (errno.ENOBUFS, "read the table"),
        (errno.EINVAL, "lo must be up"),
    ],
)
def test_the_text_says_what_to_do(code: int, advice: str) -> None:
    assert advice in str(error_for("verb", code, "thing", "destination"))


def test_an_error_survives_copy_and_pickle() -> None:
    failed = [Failure(DeleteService(ServiceKey.fwmark(number)), error_for("x", 3, "y", "service")) for number in range(1, 8)]
    batch = BatchError(failed, 9)
    for copied in (copy.copy(batch), pickle.loads(pickle.dumps(batch))):
        assert str(copied) == str(batch) and "7 of 9" in str(copied) and "2 more" in str(copied)
        assert (copied.count, [str(one) for one in copied.failures]) == (9, [str(one) for one in failed])
    error = error_for("delete service", errno.ESRCH, "fwmark/7", "service")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is ServiceNotFound
        assert (str(twin), twin.errno, twin.operation, twin.what) == (
            str(error),
            errno.ESRCH,
            "delete service",
            "fwmark/7",
        )


def test_an_error_that_is_gone_leaves_nothing_behind() -> None:
    """Seen: a second OSError.__init__ of the same error never released what the first had set."""
    failed = [Failure(DeleteService(ServiceKey.fwmark(7)), error_for("x", 3, "y", "service"))]

    def blocks_after(count: int) -> int:
        for _ in range(count):
            BatchError(failed, 1)
        gc.collect()
        return sys.getallocatedblocks()

    before = blocks_after(100)
    assert blocks_after(2000) - before < 200
