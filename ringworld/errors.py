"""Errors that a person can repair."""


class UserError(Exception):
    """Something given from outside cannot work: the message names the value and the remedy.

    Never retried: the trainer answers it with exit code 64.
    """
