"""What can keep the local stack from running. Every message is one sentence, with the command that mends it."""


class StackError(RuntimeError):
    """The stack cannot start, or has ended."""


class PrerequisiteError(StackError):
    """Something that the machine lacks."""


class PortInUseError(StackError):
    """A port that the stack needs is taken."""


class StartError(StackError):
    """A process ended, or did not get ready, while the stack waited for it."""


class ProcessEndedError(StackError):
    """A process that should run has ended."""
