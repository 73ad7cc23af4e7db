"""The loop over HTTP: start a run on the server, ask how far it is, end it."""

from typing import Any

from fastapi import APIRouter
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from samcorrect.lib.errors import RequestError, SettingsError
from samcorrect.lib.server.access import Admin, Viewer, user_name
from samcorrect.lib.server.bodies import Body, parse_body

router = APIRouter(prefix="/samcorrect", tags=["samcorrect"])


class LoopBody(Body):
    """What may be set for one run; everything else is the server's."""

    rounds: int | None = None
    steps: int | None = None
    seed: int | None = None
    preset: str | None = None

    @property
    def settings(self) -> dict[str, object]:
        """The settings that are given, by their names."""
        given = {"rounds": self.rounds, "student_steps": self.steps, "seed": self.seed, "preset": self.preset}
        return {name: value for name, value in given.items() if value is not None}


@router.post("/loop", summary="Start a run of the loop")
def start_loop(params: dict[str, Any] | None = None, user: User = Admin) -> dict[str, Any]:
    """Start rounds of score, correct and retrain in a process of their own; one run at a time."""
    body = parse_body(LoopBody, params)
    try:
        return app_instance().loop_runs.start(body.settings, user_name(user, body.sender))
    except SettingsError as error:
        raise RequestError(str(error)) from error


@router.get("/loop", summary="How far the run is")
def read_loop(user: User = Viewer) -> dict[str, Any]:
    """`status` (idle, running, finished, failed or cancelled), progress, error, report and summary of the last run."""
    return app_instance().loop_runs.status()


@router.delete("/loop", summary="End the run")
def cancel_loop(user: User = Admin) -> dict[str, Any]:
    """End the run; what it made so far stays, and a run of the same settings goes on from there."""
    return app_instance().loop_runs.cancel(user_name(user, {}))
