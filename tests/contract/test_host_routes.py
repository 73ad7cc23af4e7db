"""The inventory of what the host serves: every route is ours by now, or stays the host's for a reason written here."""

from fastapi.routing import APIRoute
from monailabel import app as host
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    login,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)

from samcorrect.lib.server.routes import ADDED, MENDED

HOST_ROUTERS = (activelearning, batch_infer, datastore, infer, info, login, logs, model, ohif, proxy, scoring)
HOST_ROUTERS += (session, train, wsi_infer)
ASKS = "takes no name and no path"
REFUSED = "hands an id to our datastore, which deletes nothing"
STOPS = "stops a background task; takes no params"
KEPT = {
    ("GET", "/"): ASKS,
    ("GET", "/favicon.ico"): ASKS,
    ("GET", "/info/"): ASKS,
    ("GET", "/train/"): ASKS,
    ("GET", "/scoring/"): ASKS,
    ("GET", "/batch/infer"): ASKS,
    ("GET", "/datastore/dataset"): "is refused by our datastore",
    ("DELETE", "/datastore/image"): REFUSED,
    ("DELETE", "/datastore/"): REFUSED,
    ("DELETE", "/datastore/label"): REFUSED,
    ("DELETE", "/train/"): STOPS,
    ("DELETE", "/scoring/"): STOPS,
    ("DELETE", "/batch/infer"): STOPS,
    ("GET", "/model/{model}"): "our models have no file to give (InferTask.get_path)",
    ("GET", "/model/info/{model}"): "our models have no file to give (InferTask.get_path)",
    ("GET", "/auth/"): ASKS,
    ("POST", "/auth/token"): "hands a name and a password to the login server that the administrator named",
    ("GET", "/auth/token/valid"): ASKS,
}


def test_every_route_of_the_host_is_ours_or_stays_for_a_reason():
    hosts = _routes([*host.app.routes, *(route for module in HOST_ROUTERS for route in module.router.routes)])
    ours = _routes([route for router in MENDED for route in router.routes])
    # Ours are one route to ask and one to store for all of /proxy/dicom.
    proxied = {(method, path) for method, path in hosts if path.startswith("/proxy/dicom/")}
    assert hosts - ours - proxied == set(KEPT)
    assert ours <= hosts


def test_what_we_add_is_below_a_path_that_the_host_does_not_have():
    hosts = _routes([*host.app.routes, *(route for module in HOST_ROUTERS for route in module.router.routes)])
    added = _routes([route for router in ADDED for route in router.routes])
    assert added == {
        ("GET", "/samcorrect/queue"),
        ("POST", "/samcorrect/next"),
        ("POST", "/samcorrect/release"),
        ("POST", "/samcorrect/approve"),
        ("POST", "/samcorrect/reject"),
        ("POST", "/samcorrect/comment"),
        ("GET", "/samcorrect/history"),
        ("POST", "/samcorrect/loop"),
        ("GET", "/samcorrect/loop"),
        ("DELETE", "/samcorrect/loop"),
        ("GET", "/samcorrect/models"),
        ("POST", "/samcorrect/models/promote"),
        ("POST", "/samcorrect/models/rollback"),
    }
    assert not {path for _, path in hosts if path.startswith("/samcorrect")}


def _routes(routes):
    return {(method, route.path) for route in routes if isinstance(route, APIRoute) for method in route.methods}
