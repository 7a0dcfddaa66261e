"""The errors that change what the runner does next; every other exception is a crash, which may be tried again."""


class UserError(Exception):
    """Something given from outside cannot work: the message names the value and the remedy. Never retried."""


class LeaseLost(Exception):
    """This driver no longer owns its run: another one may be writing there, so nothing more may be committed."""
