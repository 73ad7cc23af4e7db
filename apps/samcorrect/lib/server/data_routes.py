"""Routes that read and write images, labels and what is noted about them, in place of the host's
(`endpoints/datastore.py`).

The host's block every other client while they work, keep uploads under guessable names, and ask nobody who submits.
"""

import re
import threading
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile
from fastapi.responses import Response
from monailabel.endpoints.datastore import ResultType, download_image, download_label
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import file_checksum

from samcorrect.lib.compat.json_objects import parse_json_object
from samcorrect.lib.errors import RequestError, UnknownImageError
from samcorrect.lib.server.access import Annotator, Viewer, with_user
from samcorrect.lib.server.uploads import id_of_upload, only_upload, private_upload

router = APIRouter(prefix="/datastore", tags=["Datastore"])

CHECK_SUM = re.compile(r"(?:(SHA256|SHA512|MD5):)?([0-9a-fA-F]{32,128})")
JsonText = Annotated[str, Form(description="a JSON object")]
# Of two uploads of one id the second must find the first.
_adding = threading.Lock()
Upload = Annotated[list[UploadFile], File(description="one file")]


@router.get("/", summary="Counts, or a list of all images")
def read_datastore(output: ResultType = ResultType.stats, user: User = Viewer) -> Any:
    """Counts, image and label files of the approved images, or what viewers read of all images."""
    datastore = app_instance().datastore()
    if output is ResultType.all:
        # Text as it is: to parse and write 100,000 objects takes seconds.
        return Response(datastore.json_bytes(), media_type="application/json")
    return datastore.datalist() if output is ResultType.train else datastore.status()


@router.put("/", include_in_schema=False)
@router.put("/image", summary="Add an image")
def add_image(file: Upload, image: str = "", params: JsonText = "{}", user: User = Annotator) -> dict[str, str]:
    """Take an image into the studies folder; `image` is its id, by default its file name without the suffix."""
    info = with_user(user, parse_json_object(params, "params"))
    upload = only_upload(file, "file")
    image_id = image or id_of_upload(upload)
    with private_upload(upload) as path, _adding:
        return {"image": app_instance().datastore().add_image(image_id, str(path), info)}


@router.put("/label", summary="Submit a label")
def save_label(
    image: str, label: Upload, params: JsonText = "{}", tag: str = "", user: User = Annotator
) -> dict[str, Any]:
    """Keep a label as a new version; the tag `final`, the default, approves the image."""
    info = with_user(user, parse_json_object(params, "params"))
    app = app_instance()
    with private_upload(only_upload(label, "label")) as path:
        label_id = app.datastore().save_label(image, str(path), tag or DefaultLabelTag.FINAL.value, info)
    return {**(app.on_save_label(image, label_id) or {}), "image": image, "label": label_id}


@router.head("/image", summary="Check if an image exists, and its checksum if one is given")
def check_image(image: str, check_sum: str = "", user: User = Viewer) -> Response:
    """Answer 200 without a body; `check_sum` is hexadecimal, after `SHA256:`, `SHA512:` or `MD5:` where not SHA256."""
    path = Path(app_instance().datastore().get_image_uri(image))
    if check_sum:
        parsed = CHECK_SUM.fullmatch(check_sum)
        if parsed is None:
            raise RequestError(f"`check_sum` is <SHA256|SHA512|MD5>:<hexadecimal>; got {check_sum!r:.80}")
        algorithm = parsed[1] or "SHA256"
        if file_checksum(path, algorithm) != f"{algorithm}:{parsed[2].lower()}":
            raise UnknownImageError(f"the image {image[:80]!r} has another checksum")
    return Response()


@router.get("/image", summary="An image")
def read_image(image: str, user: User = Viewer) -> Response:
    """The file of an image, fetched from the PACS where it is not here yet."""
    return download_image(image)


@router.get("/label", summary="A label")
def read_label(label: str, tag: str, user: User = Viewer) -> Response:
    """The file of a label; one that is put on its image's grid first may need the image."""
    return download_label(label, tag)


@router.head("/label", summary="Check if a label exists")
def check_label(image: str, tag: str, user: User = Viewer) -> Response:
    """Answer 200 without a body."""
    download_label(image, tag, check_only=True)
    return Response()


@router.get("/image/info", summary="What clients noted about an image")
def read_image_info(image: str, user: User = Viewer) -> dict[str, Any]:
    """The image's info; for an id that is not known yet a PACS is asked."""
    return app_instance().datastore().get_image_info(image)


@router.get("/label/info", summary="What a label holds, and where it comes from")
def read_label_info(label: str, tag: str, user: User = Viewer) -> dict[str, Any]:
    """Names of the structures in it, its version and state, what made it, and what viewers noted."""
    return app_instance().datastore().get_label_info(label, tag)


@router.put("/image/info", summary="Note something about an image")
def update_image_info(image: str, info: JsonText, user: User = Annotator) -> None:
    """Merge an object into the image's info."""
    app_instance().datastore().update_image_info(image, with_user(user, parse_json_object(info, "info")))


@router.put("/label/info", summary="Note something about a label")
def update_label_info(label: str, tag: str, info: JsonText, user: User = Annotator) -> None:
    """Merge an object into what viewers noted about the label."""
    app_instance().datastore().update_label_info(label, tag, with_user(user, parse_json_object(info, "info")))


@router.put("/updatelabelinfo", include_in_schema=False)
def update_label_info_by_its_old_name(label: str, tag: str, params: JsonText = "{}", user: User = Annotator) -> None:
    """Do what `update_label_info` does."""
    update_label_info(label, tag, params, user)
