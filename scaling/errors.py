"""The ways in which work can end early on purpose."""


class UserError(Exception):
    """Something the user wrote or supplied cannot be used; the message is one line and says what to do.

    The command line prints the message and exits with code 2.
    """


class Diverged(Exception):
    """A run's loss stopped being a finite number; the run ends as a failed row."""


class Interrupted(Exception):
    """A run was asked to stop; its state is saved as far as it could be."""


class Parted(Exception):
    """Of the runs that several processes share, one was interrupted; all states are saved, and the others can go on."""


class TeamBroken(Exception):
    """A process of a team has died, which says nothing about the run it was at."""
