"""The three ways in which a command of this project can fail, each with its exit code."""

from __future__ import annotations


class HandheldError(Exception):
    """A failure that is told to the user in one or two sentences: what is wrong, and what to do."""

    exit_code = 1


class CheckFailed(HandheldError):
    """A check did its work and said no: parity, integrity, a score."""

    exit_code = 1


class InputError(HandheldError):
    """The call or its input is wrong: an unknown name, a broken file, an impossible size."""

    exit_code = 2


class Unavailable(HandheldError):
    """What was asked for is right, and not to be had on this machine: a provider, a device, the network."""

    exit_code = 3
