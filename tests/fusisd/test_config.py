"""The file fusisd.toml: every option has a key in it and in docs/fusisd.toml; what counts first; what SIGHUP changes."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from fusisd import config, settings
from fusisd.errors import StartupError
from tests.fusisd.dry import Dry
from tests.lab.expect import poll

EXAMPLE = (Path(__file__).parents[2] / "docs" / "fusisd.toml").read_text()
KEY = re.compile(r"^#?([a-z_]+) = ", re.MULTILINE)


def parsed(file: Path, text: str, *arguments: str) -> config.Config:
    file.write_text(text)
    return config.parse(["--config", str(file), *arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fusisd.toml"


def test_every_key_is_in_the_documented_file_once_and_all_of_it_is_accepted(file: Path) -> None:
    known = settings.keys(config._parser())
    assert len(known) > 15
    assert sorted(KEY.findall(EXAMPLE)) == sorted(known)
    assert parsed(file, EXAMPLE) == config.parse(["--iface", "eth0"])
    whole = parsed(file, KEY.sub(lambda found: found[0].removeprefix("#"), EXAMPLE))
    assert whole.listen == (("127.0.0.1", 8000), ("::1", 8000))
    assert (whole.sysctls, whole.dry_run, str(whole.policy.allow_claims[0])) == (True, False, "10.9.0.0/24")


def test_what_is_marked_for_reload_there_is_what_is_reloaded() -> None:
    marked = {key for block in re.findall(r"\[reload\].*\n((?:#[a-z_]+ = .*\n)+)", EXAMPLE) for key in KEY.findall(block)}
    policy = {"serf_allow", "allow_claims", "serf_services", "serf_destinations"}
    assert marked == (config.RELOADED - {"policy"}) | policy


def test_the_command_line_counts_before_the_file(file: Path) -> None:
    text = 'iface = "eth0"\nlisten = ["127.0.0.1:1"]\nserf = "off"\nsysctl = false\n'
    found = parsed(file, text, "--listen", "127.0.0.1:2", "--serf=127.0.0.1:3")
    assert (found.iface, found.listen, found.serf_rpc) == ("eth0", (("127.0.0.1", 2),), ("127.0.0.1", 3))
    assert not found.sysctls


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ifaec = 'eth0'", "ifaec is not known"),
        ("config = 'x'", "config is not known"),
        ("recover_store = true", "recover_store is not known"),
        ("listen = '127.0.0.1:1'", "listen '127.0.0.1:1' must be a list"),
        ("dry_run = 'yes'", "dry_run 'yes' must be true or false"),
        ("serf_rpc_port = '1'", "serf_rpc_port '1' must be a whole number"),
        ("log_level = 'loud'", "log_level 'loud' must be one of debug"),
        ("iface = ?", "line 1"),
    ],
)
def test_a_wrong_file_is_refused_whole_and_names_the_key(file: Path, text: str, said: str) -> None:
    with pytest.raises(StartupError) as refused:
        parsed(file, text)
    assert str(file) in str(refused.value)
    assert said in str(refused.value)
    assert refused.value.status == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('tls_cert = "/nonexist"\ntls_key = "/nonexist"', "/nonexist"),
        ('serf_rpc_key_file = "/nonexist"', "/nonexist"),
        ('listen = ["nonsense:80"]', "give an address"),
        ('listen = ["127.0.0.1:80", "127.0.0.1:80"]', "twice"),
        ('serf = "a..b:7373"', "ADDRESS:PORT"),
        ("serf_rpc_port = 99999", "port"),
        ("serf_bind_port = 0", "port"),
        ('host_name = ["https://lb.example.com"]', "a name alone"),
        ("log_level = 2026-11-01", "is a date"),
    ],
)
def test_check_config_finds_what_would_fail_the_start(
    file: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    from fusisd.__main__ import main

    file.write_text(f'iface = "eth0"\n{text}\n')
    try:
        status = main(["--config", str(file), "--check-config"])
    except SystemExit as ended:  # argparse
        status = int(ended.code or 0)
    assert status == 2
    assert said in capsys.readouterr().err


def test_check_config_says_so_and_ends(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fusisd.__main__ import main

    file.write_text('iface = "eth0"\n')
    assert main(["--config", str(file), "--check-config"]) == 0
    assert "is right" in capsys.readouterr().out
    file.write_text("listen = [1]\n")
    assert main(["--config", str(file), "--check-config"]) == 2
    assert "listen[0] 1 must be text" in capsys.readouterr().err
    assert main(["--config", str(file) + "x", "--check-config"]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_sighup_reloads_what_can_be_says_what_cannot_and_keeps_all_when_it_is_wrong(tmp_path: Path, file: Path) -> None:
    dry = Dry(tmp_path)
    file.write_text("")
    dry.start(dry.command("--config", str(file)))
    try:
        file.write_text('log_level = "debug"\nserf_services = 1\niface = "eth7"\n')
        dry.tell(signal.SIGHUP)
        poll(lambda: "reloaded changed=log_level,policy" in dry.log.read_text(), 20, "the reload")
        poll(lambda: "needs_restart=iface" in dry.log.read_text(), 20, "what needs a restart")
        file.write_text("log_level = 7\n")
        dry.tell(signal.SIGHUP)
        poll(lambda: "reload refused" in dry.log.read_text(), 20, "the refusal")
        assert dry.ask("GET", "/healthz")[0] == 200
    finally:
        dry.close()
