"""Host fault: whole requests are logged at INFO, with image ids and file names, which can be the names of patients."""

import logging


def silence_host_logs() -> None:
    """Keep what the host logs below WARNING out of the logs, in the server and in its background processes.

    A level that the administrator set for the host's loggers stays.
    """
    host = logging.getLogger("monailabel")
    if host.level == logging.NOTSET:
        host.setLevel(logging.WARNING)
