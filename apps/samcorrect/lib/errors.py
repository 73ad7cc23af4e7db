"""The errors of samcorrect. Each derives from SamCorrectError and from the built-in that it refines.

A message says what was wrong, the value got, the values accepted and what to do; `lib/server` alone turns it into HTTP.
"""


class SamCorrectError(Exception):
    """Base of all errors that samcorrect raises on purpose."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument; a person should read the sentence.
        return str(self.args[0]) if self.args else ""


class SettingsError(SamCorrectError, ValueError):
    """A setting of the command line, of --conf or of the environment is unknown or out of range."""


class ProtocolError(SamCorrectError, ValueError):
    """The protocol file, or a boxes file it names, is missing or faulty."""


class ImageError(SamCorrectError, ValueError):
    """An image cannot be read or used."""


class LabelError(SamCorrectError, ValueError):
    """A label cannot be read or used."""


class GeometryError(LabelError):
    """A label does not lie on the grid of its image."""


class RequestError(SamCorrectError, ValueError):
    """A request names a parameter that cannot be used."""


class ConflictError(RequestError):
    """What a person decided rests on a state of the store that has changed in the meantime."""


class UnknownImageError(SamCorrectError, KeyError):
    """No image of that id is in the store."""


class UnknownLabelError(SamCorrectError, KeyError):
    """No such label of that image is in the store."""


class UnknownModelError(SamCorrectError, KeyError):
    """No model of that name is registered or trained."""


class WeightsError(SamCorrectError, ValueError):
    """A weights file is missing, has another hash or belongs to another architecture."""


class TrainingError(SamCorrectError, RuntimeError):
    """A training collapsed, from every seed that was tried."""


class TrackingError(SamCorrectError, ConnectionError):
    """The server that trainings are to be tracked on cannot be used."""


class StoreError(SamCorrectError, OSError):
    """The studies or the state folder cannot be used."""


class DependencyError(SamCorrectError, ImportError):
    """An optional package is not installed."""


class WorkerDiedError(SamCorrectError, RuntimeError):
    """A worker process ended in the middle of its work."""
