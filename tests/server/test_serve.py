import json
import os

import pytest
from monailabel.config import settings as host_settings

from samcorrect.lib.errors import SettingsError, StoreError
from samcorrect.lib.server.serve import check_host, configure_host, log_config, serve
from samcorrect.lib.settings import Settings, load_settings


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.0.1"])
def test_this_machine_is_served_without_a_login(host):
    check_host(host, is_auth_on=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "my-server", ""])
def test_other_machines_need_a_login(host):
    with pytest.raises(SettingsError, match="MONAI_LABEL_AUTH_ENABLE=true"):
        check_host(host, is_auth_on=False)
    check_host(host, is_auth_on=True)


def test_background_processes_get_the_same_settings(tmp_path, monkeypatch):
    for name in ("APP_DIR", "STUDIES", "APP_CONF", "SERVER_PORT"):
        monkeypatch.setattr(host_settings, f"MONAI_LABEL_{name}", getattr(host_settings, f"MONAI_LABEL_{name}"))
        monkeypatch.setenv(f"MONAI_LABEL_{name}", "to be restored")
    settings = Settings(seed=5, student_steps=17, preset="huang2023")
    configure_host(settings, tmp_path / "studies", tmp_path / "state", 8123)
    conf = json.loads(os.environ["MONAI_LABEL_APP_CONF"])
    assert load_settings(conf, {}) == settings.model_copy(update={"state": tmp_path / "state"})
    assert os.environ["MONAI_LABEL_STUDIES"] == str(tmp_path / "studies")
    assert os.environ["MONAI_LABEL_SERVER_PORT"] == "8123"


def test_logs_go_to_the_state_folder(tmp_path):
    config = log_config(tmp_path / "state" / "logs")
    assert config["handlers"]["file"]["filename"] == str(tmp_path / "state" / "logs" / "app.log")
    assert (tmp_path / "state" / "logs").is_dir()


def test_a_folder_without_images_is_not_served(tmp_path):
    with pytest.raises(StoreError, match="no images"):
        serve(Settings(threads=1), tmp_path)
    with pytest.raises(StoreError, match="does not exist"):
        serve(Settings(threads=1), tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}),
        *[(given, given) for given in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "0"})],
    ],
)
@pytest.mark.parametrize("command", ["serve", "score"])
def test_threads_that_wait_spin_shortly_unless_they_are_told_otherwise(
    command, given, expected, tmp_path, monkeypatch, run
):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code, _, _ = run(command, "--studies", tmp_path / "nowhere")
    assert code == 1
    assert {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ} == expected
