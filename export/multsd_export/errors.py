"""What can go wrong in an export; `cli` turns each into one sentence and an exit code."""


class ExportError(ValueError):
    """The root of this package's errors; its text is one sentence for the person who started the export."""


class CheckpointError(ExportError):
    """The checkpoint is missing something, is of an unsupported family, or is not safe to load."""


class RepositoryError(ExportError):
    """The repository's sources are not as expected, or the output folder may not be replaced."""


class ContractError(ExportError):
    """An exported network's names, types or dimensions differ from its `config.pbtxt`."""


class ParityError(ExportError):
    """An exported network computes something else than the checkpoint does in torch."""


class AuditError(ExportError):
    """TensorRT would not take an exported graph."""


class EngineError(ExportError):
    """TensorRT is not there or builds nothing, or an engine belongs to another machine."""


class ServerError(ExportError):
    """Triton cannot be reached, or does not answer a request."""


class NoAnswerError(ExportError):
    """Triton did not answer in time; nothing more is asked of it."""


class TorchError(ExportError):
    """What is compared with cannot be computed here."""


def printable(text: str) -> str:
    """A message as a terminal may show it: names of tensors and files come from whoever made the checkpoint."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)
