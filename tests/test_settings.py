"""Settings from --conf, the command line and the environment."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from samcorrect.lib.errors import SettingsError
from samcorrect.lib.settings import MODULES, Settings, load_settings


def test_strings_of_conf_and_environment_are_parsed_and_the_given_ones_win():
    environment = {"SAMCORRECT_ROUNDS": "5", "SAMCORRECT_SEED": "7", "SAMCORRECT_STATE": "/state dir", "PATH": "/bin"}
    given = {
        "rounds": "3",
        "student_learning_rate": "1e-3",
        "protocol": "p.yaml",
        "preset": "huang2023",
        "threads": None,
    }
    settings = load_settings(given, environment)
    assert settings.rounds == 3
    assert settings.seed == 7
    assert settings.state == Path("/state dir")
    assert settings.protocol == Path("p.yaml")
    assert settings.student_learning_rate == 0.001
    assert settings.preset == "huang2023"
    assert settings.threads == 0


def test_nothing_given_is_all_defaults_and_the_hosts_own_keys_are_ignored():
    assert load_settings({}, {}) == Settings()
    assert load_settings({"server_mode": "true", "seed": None}, {"SAMCORRECT_SEED": ""}) == Settings()


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("SAMCORRECT_SEED", "11")
    assert load_settings({}).seed == 11


def test_all_faults_are_in_one_message():
    given = {
        "round": "3",
        "rounds": "99",
        "preset": "best",
        "audit_share": "lots",
        "threads": "-2",
        "student_side_px": 100,
    }
    with pytest.raises(SettingsError) as caught:
        load_settings(given, {"SAMCORRECT_SEEED": "1", "SAMCORRECT_LEASE_S": "0"})
    message = str(caught.value)
    assert message.startswith("8 fault(s) in the settings:\n")
    for key in (*given, "seeed", "lease_s"):
        assert f"\n  - {key}: " in message
    assert "got '99'" in message
    assert "'samcorrect' or 'huang2023'" in message


def test_an_unknown_key_names_all_known_ones():
    with pytest.raises(SettingsError, match="models: no such setting") as caught:
        load_settings({"models": "sam"}, {})
    assert all(name in str(caught.value) for name in Settings.model_fields)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rounds", "0"),
        ("rounds", "2.5"),
        ("rounds", "two"),
        ("seed", "-1"),
        ("audit_share", "1.01"),
        ("audit_share", "nan"),
        ("lease_s", "-5"),
        ("max_upload_mb", "0"),
        ("volume_cache_mb", "-1"),
        ("warm_slices", "65"),
        ("student_learning_rate", "0"),
        ("threads", "257"),
        ("n_candidates", "65"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_value(key, value):
    with pytest.raises(SettingsError, match=f"{key}: .*got '{value}'"):
        load_settings({key: value}, {})


def test_settings_cannot_be_changed_and_the_mapping_given_is_not():
    given = {"seed": "1"}
    settings = load_settings(given, {})
    assert given == {"seed": "1"}
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 2


def test_the_states_to_train_on_are_put_in_order_and_survive_being_handed_on_as_text():
    assert load_settings({}, environment={}).states_to_train_on == ("approved", "corrected", "pseudo")
    settings = load_settings({"train_on": " pseudo,approved"}, environment={})
    assert (settings.train_on, settings.states_to_train_on) == ("approved,pseudo", ("approved", "pseudo"))
    assert load_settings({"train_on": str(settings.train_on)}, environment={}) == settings
    for wrong in ("rejected", "", "approved;pseudo"):
        with pytest.raises(SettingsError, match="some of approved, corrected, pseudo are wanted"):
            load_settings({"train_on": wrong}, environment={})


def test_mlflow_and_its_address_are_given_together_and_no_message_shows_a_password():
    settings = load_settings({"tracking": "mlflow", "tracking_uri": "http://127.0.0.1:5000"}, environment={})
    assert load_settings(settings.model_dump(), environment={}) == settings
    for given in ({"tracking": "mlflow"}, {"tracking_uri": "http://127.0.0.1:5000"}):
        with pytest.raises(SettingsError, match=r"tracking_uri: .*`tracking mlflow` are wanted together"):
            load_settings(given, environment={})
    with pytest.raises(SettingsError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        load_settings({"tracking": "mlflow", "tracking_uri": "http://anna:secret@127.0.0.1"}, environment={})
    assert "secret" not in str(caught.value)


def test_parts_of_the_method_are_switched_off_by_naming_the_others():
    everything = load_settings({}, environment={})
    assert all(everything.has_module(name) for name in MODULES)
    assert everything.n_prompts == everything.n_candidates == 16
    settings = load_settings({"modules": "pixel_weights, correct"}, environment={})
    assert settings.modules == "correct,pixel_weights"
    assert not settings.has_module("search")
    assert not settings.has_module("largest_piece")
    assert settings.n_prompts == 1
    for wrong in ("weights", "", "search correct"):
        with pytest.raises(SettingsError, match=r"modules: .*some of search, ask_again, correct, image_weights, "):
            load_settings({"modules": wrong}, environment={})


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "10.0.0.7:6379", "ray://head.ward.local:10001"])
def test_a_ray_cluster_has_an_address(address):
    given = {"engine": "ray", "ray_address": address, "workers": "8"}
    assert load_settings(given, {}) == Settings(engine="ray", ray_address=address, workers=8)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"engine": "ray", "ray_address": "head"},
            "ray_address: .*HOST:PORT or ray://HOST:PORT is wanted.*'head'",
        ),
        ({"engine": "ray", "ray_address": "http://head:80/"}, "ray_address: .*is wanted"),
        ({"ray_address": "127.0.0.1:6379"}, "ray_address: .*set the engine to ray too"),
        ({"engine": "dask"}, "engine: .*'processes' or 'ray'.*got 'dask'"),
        ({"workers": "257"}, "workers: .*got '257'"),
    ],
)
def test_workers_that_cannot_be_had_are_refused(given, says):
    with pytest.raises(SettingsError, match=says):
        load_settings(given, {})
