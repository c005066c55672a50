"""Who is told of a picture before it is there, over HTTP and over gRPC alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from multsd_client.tensors import Preview, Progress, Queued, Update

OnQueued = Callable[[Queued], None]
OnProgress = Callable[[Progress], None]
OnPreview = Callable[[Preview], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Callbacks, any of which may be missing. What one of them raises ends the request.

    on_queued: whenever it changes how many requests wait before this one; another attempt queues anew. on_progress:
    after every step. on_preview: whenever the request's preview_every is due. After either of these no attempt follows.
    """

    on_queued: OnQueued | None = None
    on_progress: OnProgress | None = None
    on_preview: OnPreview | None = None

    @property
    def hears(self) -> bool:
        """Whether anything is listened to."""
        return any((self.on_queued, self.on_progress, self.on_preview))

    def tell(self, update: Update) -> None:
        """Call whoever wants to know of an update."""
        if isinstance(update, Queued):
            if self.on_queued is not None:
                self.on_queued(update)
        elif isinstance(update, Progress):
            if self.on_progress is not None:
                self.on_progress(update)
        elif self.on_preview is not None:
            self.on_preview(update)
