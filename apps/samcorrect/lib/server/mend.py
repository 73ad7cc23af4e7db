"""What both ways of starting do to the host's web application, once it is up."""

from monailabel.app import app
from monailabel.config import settings as host_settings

from samcorrect.lib.compat.background_tasks import ensure_pythonpath
from samcorrect.lib.compat.body_limit import limit_bodies
from samcorrect.lib.compat.cross_origin import forbid_other_origins
from samcorrect.lib.server.errors import OnRefusal, add_error_handlers
from samcorrect.lib.server.routes import add_routes


def mend_server(max_upload_mb: int, on_refusal: OnRefusal) -> None:
    """Add error handlers, limits and our routes to the host's application, and close it to other origins.

    The host imports our app inside the application's lifespan, when Starlette has built its middleware stack already.
    The stack is therefore dropped, and Starlette builds it again, with ours in it, at the first request.

    Args:
        max_upload_mb: The setting of that name, in units of 2**20 bytes.
        on_refusal: See `add_error_handlers`.
    """
    ensure_pythonpath()
    forbid_other_origins(app, [str(origin) for origin in host_settings.MONAI_LABEL_CORS_ORIGINS])
    limit_bodies(app, max_upload_mb * 2**20)
    add_error_handlers(app, on_refusal)
    add_routes(app)
    app.middleware_stack = None
