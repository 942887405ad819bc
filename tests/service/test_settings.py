import argparse

import pytest
from pydantic import ValidationError

from service.settings import SECRETS, SECTIONS, Settings, SettingsError, add_arguments, read


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return vars(parser.parse_args(words))


def test_nothing_given_is_a_service_on_this_machine_alone():
    settings = read(parsed(), {})
    assert settings == Settings()
    assert (settings.host, settings.base, settings.api_key) == ("127.0.0.1", "miniature", None)


def test_flags_beat_variables_beat_the_recipe():
    environ = {"COEVO_PORT": "9001", "COEVO_MAX_LORAS": "3", "COEVO_HOST": "10.0.0.1"}
    recipe = {"port": 9002, "max_loras": 4, "top_k": 5}
    settings = read(parsed("--port", "9000"), environ, recipe)
    assert (settings.port, settings.host) == (9000, "10.0.0.1")
    assert (settings.engine.max_loras, settings.engine.top_k) == (3, 5)


def test_every_setting_but_the_secrets_has_a_flag():
    inner = {name for section in SECTIONS.values() for name in section.model_fields}
    assert set(parsed()) == (set(Settings.model_fields) | inner) - SECRETS - set(SECTIONS)


def test_secrets_come_from_the_environment_and_are_not_shown():
    settings = read({"api_key": "from-a-flag"}, {"COEVO_API_KEY": "sesame", "COEVO_REDIS_URL": "redis://:word@host/0"})
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "sesame"
    assert "sesame" not in repr(settings)
    assert "word@" not in repr(settings)


def test_a_variable_set_to_nothing_is_not_set():
    assert read({}, {"COEVO_API_KEY": "", "COEVO_PORT": ""}) == Settings()


@pytest.mark.parametrize(
    ("flags", "environ", "recipe", "says"),
    [
        ({"port": "eighty"}, {}, {}, "--port: input should be a valid integer"),
        ({"port": "65536"}, {}, {}, "--port: input should be less than or equal to 65535"),
        ({}, {"COEVO_KV_CACHE_GIB": "nan"}, {}, "COEVO_KV_CACHE_GIB: "),
        ({}, {"COEVO_DTYPE": "int4"}, {}, "COEVO_DTYPE: input should be 'auto', 'bfloat16' or 'float32'"),
        ({}, {}, {"max_lora_rank": 1024}, "recipe: max_lora_rank: input should be less than or equal to 512"),
        ({"max_waiting": "-1"}, {"COEVO_MAX_LORAS": "1"}, {}, "--max-waiting: .*; COEVO_MAX_LORAS: "),
        ({}, {"COEVO_API_KEY": "open sesame"}, {}, "COEVO_API_KEY: take visible ASCII"),
        ({"data_parallel": "0"}, {}, {}, "--data-parallel: input should be greater than or equal to 1"),
        # Cores on several hosts.
        ({"data_parallel_start": "1"}, {}, {"data_parallel": 2}, "--data-parallel-start 1: say with --data-parallel-l"),
        ({"data_parallel_start": "1", "data_parallel_local": "2"}, {}, {"data_parallel": 2}, "cores 1 to 2 of 0 to 1"),
        ({"data_parallel_local": "1"}, {}, {"data_parallel": 2}, "--data-parallel-address: set it to the address of"),
        (
            {"data_parallel_local": "1", "data_parallel_address": "10.0.0.1"},
            {},
            {"data_parallel": 2},
            "--adapter-cache /dev/shm: it is this host's alone, .* name a folder that all hosts share",
        ),
    ],
)
def test_a_wrong_value_is_told_in_one_line_with_its_origin(flags, environ, recipe, says):
    with pytest.raises(SettingsError, match=says) as caught:
        read(flags, environ, recipe)
    assert "\n" not in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_cores_on_two_hosts_take_an_address_and_a_shared_folder():
    flags = {"data_parallel_local": "1", "data_parallel_address": "10.0.0.1"}
    first = read(flags | {"adapter_cache": "/shared/cache"}, {}, {"data_parallel": 2})
    assert (first.engine.data_parallel_start, first.engine.data_parallel_local) == (0, 1)
    second = read(flags | {"data_parallel_start": "1"}, {}, {"data_parallel": 2})
    assert second.engine.data_parallel_start == 1


def test_settings_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1
