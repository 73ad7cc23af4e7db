"""Routes of our own, and those in place of the host's that fail on, obey or hang on what a client sends."""

from fastapi import FastAPI
from monailabel.config import settings as host_settings

from samcorrect.lib.server import (
    data_routes,
    loop_routes,
    model_routes,
    other_routes,
    queue_routes,
    review_routes,
    session_routes,
    task_routes,
)

# In place of the host's.
MENDED = (task_routes.router, data_routes.router, session_routes.router, other_routes.router)
ADDED = (queue_routes.router, review_routes.router, loop_routes.router, model_routes.router)
ROUTERS = (*MENDED, *ADDED)


def add_routes(app: FastAPI) -> None:
    """Put our routes before those of the host."""
    n_routes = len(app.router.routes)
    for router in ROUTERS:
        app.include_router(router, prefix=host_settings.MONAI_LABEL_API_STR)
    routes = app.router.routes
    routes[:] = routes[n_routes:] + routes[:n_routes]
