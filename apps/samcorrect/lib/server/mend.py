"""What both ways of starting do to the host's web application, once it is up."""

from monailabel.app import app
from monailabel.config import settings as host_settings

from samcorrect.lib.compat.background_tasks import ensure_pythonpath
from samcorrect.lib.compat.cross_origin import forbid_other_origins
from samcorrect.lib.server.errors import add_error_handlers
from samcorrect.lib.server.routes import add_routes


def mend_server() -> None:
    """Add error handlers and our routes to the host's application, and close it to other origins.

    The host imports our app inside the application's lifespan, when Starlette has built its middleware stack already.
    The stack is therefore dropped, and Starlette builds it again, with ours in it, at the first request.
    """
    ensure_pythonpath()
    forbid_other_origins(app, host_settings.MONAI_LABEL_CORS_ORIGINS)
    add_error_handlers(app)
    add_routes(app)
    app.middleware_stack = None
