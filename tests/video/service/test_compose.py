"""The composed services use flags, metrics and files that exist."""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped]
from tests.helpers import ROOT

from rushes.cli import COMMANDS
from rushes.configs.load import load_config
from rushes.video.service.command import _parser

FILE = ROOT / "docker" / "compose.yaml"


def composed() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def plain(words: list[str]) -> list[str]:
    """The command with its variables at their defaults."""
    return [
        word[: word.index("${")] + word.partition(":-")[2].rstrip("}") if "${" in word else word
        for word in words
    ]


def test_two_servers_a_trainer_and_prometheus() -> None:
    assert set(composed()["services"]) == {"frames-1", "frames-2", "trainer", "prometheus"}


def test_the_servers_flags_are_known() -> None:
    for name in ("frames-1", "frames-2"):
        command = plain(composed()["services"][name]["command"])
        assert command[:2] == ["rushes", "serve-frames"]
        options = _parser("rushes serve-frames").parse_args(command[2:])
        assert options.cache == 8 * 10**9
        assert options.token_file == "/run/secrets/frames"


def test_the_trainer_asks_both_servers_with_the_token() -> None:
    services = composed()["services"]
    command = plain(services["trainer"]["command"])
    assert command[1] in COMMANDS
    config = load_config(command[2:])
    hosts = config.data.frames.removeprefix("flight://").split(",")
    assert [host.split(":")[0] for host in hosts] == ["frames-1", "frames-2"]
    assert config.data.token == "/run/secrets/frames"
    assert set(services["trainer"]["depends_on"]) == {"frames-1", "frames-2"}


def test_prometheus_scrapes_the_metrics_port() -> None:
    loaded = composed()
    scraped = yaml.safe_load(loaded["configs"]["prometheus"]["content"])["scrape_configs"][0]
    ports = {target.split(":")[1] for target in scraped["static_configs"][0]["targets"]}
    assert ports == {"8816"}
    assert "--metrics-port=8816" in loaded["services"]["frames-1"]["command"]
    built = ROOT / loaded["services"]["frames-1"]["build"]["dockerfile"]
    assert built.is_file()
