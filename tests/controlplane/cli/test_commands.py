"""Every command against a real server: what programs get, what people read, what is refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.exit_codes import ExitCode
from controlplane.fleet import UpdateState
from controlplane.store import devices, receipts
from controlplane.store.database import Transaction

from .conftest import NOW, RECEIPT, RELEASE, Server, device


def test_devices_are_listed_and_selected(server: Server) -> None:
    names = [one["name"] for one in server.json("device", "list")["devices"]]
    assert names == ["box-1", "box-2", "elsewhere"]
    found = server.json("device", "list", "--to", "site=lab,tier!=canary")["devices"]
    assert [one["name"] for one in found] == ["box-1"]
    assert found[0]["connected"] is False
    assert found[0]["current_release"] == RELEASE
    assert found[0]["variants"] == {"chat": "q4"}
    assert found[0]["facts"]["cores"] == 4
    text = server.run("device", "list").stdout
    assert "box-1" in text
    assert "chat=q4" in text


def test_a_device_is_shown_with_its_receipts(server: Server) -> None:
    document = server.json("device", "show", "box-1")
    assert document["device"]["id"] == "id-box-1"
    assert document["receipts"][0]["outcome"] == "committed"
    (slot,) = document["device"]["health"]["slots"]
    assert slot == {
        "slot": "chat",
        "ready": True,
        "worker_restarts": 1,
        "requests": 9,
        "errors": 2,
    }
    assert document["device"]["health"]["release"] == RELEASE
    text = server.run("device", "show", "id-box-1").stdout
    assert "tiny cpu" in text.lower()
    assert "12 ms" in text
    assert "1.0 MiB" in text
    assert "chat ready, 1 worker restarts, 2 of 9 requests failed" in text


def test_a_device_is_explained(server: Server) -> None:
    document = server.json("device", "explain", "box-1")
    assert document["decisions"][0]["chosen_variant"] == "q4"
    assert document["decisions"][0]["candidates"][0]["measured_joules_per_token"] is None
    text = server.run("device", "explain", "box-1").stdout
    assert text.startswith(f"box-1 runs {RELEASE} with q4 in slot chat.")
    assert "needs 9.0 MiB, budget 5.0 MiB" in text
    assert "unmeasured" in text


def test_a_rejected_release_is_explained_on_request(server: Server) -> None:
    """Without a choice, `explain` shows the release that serves, not the one that was refused."""
    refused = replace(
        RECEIPT,
        generation=7,
        release="acme/assistant@1.1.0",
        outcome=UpdateState.REJECTED,
        reason="probation_failed",
        detail="reads-english: perplexity 900",
    )

    async def two_receipts(tx: Transaction) -> None:
        await receipts.add(tx, "id-box-2", RECEIPT, signed=b"", signature=b"", now=NOW)
        await receipts.add(tx, "id-box-2", refused, signed=b"", signature=b"", now=NOW)

    server.fill(two_receipts)
    assert server.json("device", "explain", "box-2")["release"] == RELEASE
    for choice in (("--generation", "7"), ("--release", "acme/assistant@1.1.0")):
        document = server.json("device", "explain", "box-2", *choice)
        assert (document["release"], document["outcome"]) == ("acme/assistant@1.1.0", "rejected")
        text = server.run("device", "explain", "box-2", *choice).stdout
        assert "ended rejected: probation_failed: reads-english: perplexity 900" in text
    for choice in (("--generation", "8"), ("--release", "acme/assistant@1.2.0")):
        missing = server.run("device", "explain", "box-2", *choice)
        assert missing.exit_code == ExitCode.NOT_FOUND
        assert "has no receipt for" in missing.stderr
        assert "flotilla device show box-2" in missing.stderr
    assert server.run("device", "explain", "box-2", "--release", "x").exit_code == ExitCode.USAGE


def test_labels_are_set_and_removed(server: Server) -> None:
    changed = server.json("device", "label", "elsewhere", "rack=a2", "spare=", "--remove", "none")
    assert changed["labels"] == {"rack": "a2", "site": "field", "spare": ""}
    assert "rack" not in server.run("device", "label", "elsewhere", "--remove", "rack").stdout


def test_devices_are_quarantined_released_banned_and_retired(server: Server) -> None:
    async def one_more(tx: Transaction) -> None:
        await devices.add(tx, device("suspect"))

    server.fill(one_more)
    for command, state in (
        ("quarantine", "quarantined"),
        ("release", "active"),
        ("ban", "banned"),
        ("release", "active"),
    ):
        yes = ("--yes",) if command == "ban" else ()
        said = server.run("device", command, "suspect", "--reason", "a test", *yes).stdout
        assert said == f"suspect is {state}\n"
        shown = server.run("device", "show", "suspect").stdout
        assert ("a test" in shown) is (state != "active")
        (event,) = server.json("audit", "list", "--limit", "1")["events"]
        assert (event["action"], "a test" in event["detail"]) == (f"device.{command}", True)
    assert server.json("device", "retire", "suspect", "--yes")["state"] == "retired"
    refused = server.run("device", "release", "id-suspect")
    assert refused.exit_code == ExitCode.REFUSED
    assert "retired" in refused.output


def test_what_cannot_be_undone_is_previewed_and_needs_yes(server: Server) -> None:
    token = server.json("access", "token", "create", "preview")["token"]["id"]
    for arguments, preview in (
        (("device", "ban", "box-1"), "box-1 (id id-box-1, active"),
        (("device", "retire", "box-1"), f"runs {RELEASE}) is removed for good"),
        (("access", "token", "revoke", token), f"The viewer token 'preview' (id {token})"),
    ):
        refused = server.run(*arguments)
        assert refused.exit_code == ExitCode.USAGE, refused.output
        assert preview in refused.stderr
        shown = server.json(*arguments, "--dry-run")
        assert shown["dry_run"] is True
        assert preview in shown["preview"][0]
    assert server.json("device", "show", "box-1")["device"]["state"] == "active"


def test_a_rollback_is_previewed(server: Server, rollout: dict[str, Any]) -> None:
    arguments = ("rollout", "rollback", rollout["id"])
    refused = server.run(*arguments)
    assert refused.exit_code == ExitCode.USAGE
    assert f"1 device will leave {RELEASE} if they still have it:" in refused.stderr
    assert server.json("rollout", "show", rollout["id"])["state"] == "running"


def test_telemetry_is_summed_up_and_energy_stays_unmeasured(server: Server) -> None:
    (row,) = server.json("telemetry", "summary", "--by", "device")["rows"]
    assert (row["group"], row["slot"], row["requests"]) == ("box-1", "chat", 3)
    # 300 tokens, of which three answers began with one that fell out of the prompt.
    assert row["tokens_per_second"] == pytest.approx(297)
    assert row["tokens_per_joule"] is None
    text = server.run("telemetry", "summary").stdout
    assert text.split("\n")[0].count("VARIANT") == 1
    assert "box-1" in server.run("telemetry", "summary", "--by", "device").stdout
    assert "unmeasured" in text
    assert "9.9 / 9.9 ms" in text
    assert server.json("telemetry", "summary", "--to", "site=field")["rows"] == []
    other = server.run("telemetry", "summary", "--release", "a/b@1").stdout
    assert other.startswith("No telemetry of the last 1h, release a/b@1.")


def test_releases_are_listed_and_shown(server: Server) -> None:
    (listed,) = server.json("release", "list")["releases"]
    assert listed["reference"] == RELEASE
    shown = server.json("release", "show", RELEASE)
    assert shown["components"][0]["variants"][0]["name"] == "q4"
    assert shown["manifest"]["version"] == "1.0.0"
    text = server.run("release", "show", RELEASE).stdout
    assert "q4_k_m" in text
    assert "4.0 MiB" in text


def test_api_tokens_are_made_listed_used_and_revoked(server: Server, tmp_path: Path) -> None:
    made = server.json("access", "token", "create", "ci", "--role", "viewer", "--expires", "1h")
    assert made["secret"]
    assert made["token"]["role"] == "viewer"
    admin = json.loads((server.directory / "admin.json").read_text())
    context = tmp_path / "context.json"
    context.write_text(json.dumps({**admin, "token": made["secret"]}))
    assert server.run("device", "list", context=context).exit_code == 0
    refused = server.run("device", "label", "box-1", "a=b", context=context)
    assert refused.exit_code == ExitCode.DENIED
    assert "viewer" in refused.stderr
    listed = {one["name"]: one for one in server.json("access", "token", "list")["tokens"]}
    assert "secret" not in json.dumps(listed)
    assert server.json("access", "token", "revoke", made["token"]["id"], "--yes")["revoked"] is True
    refused = server.run("device", "list", context=context)
    assert refused.exit_code == ExitCode.DENIED
    assert "revoked" in refused.stderr
    assert "flotilla access token create" in refused.stderr


def test_a_join_token_needs_the_image_repository_first(server: Server) -> None:
    refused = server.run("token", "create", "--label", "site=lab")
    assert refused.exit_code == ExitCode.REFUSED
    assert "flotilla keys init" in refused.stderr
    assert server.json("token", "list") == {"tokens": []}
    assert "No join tokens" in server.run("token", "list").stdout


def test_changes_stand_in_the_audit_log(server: Server) -> None:
    server.json("device", "label", "box-2", "audited=yes")
    (event,) = server.json("audit", "list", "--limit", "1")["events"]
    assert event["action"] == "device.label"
    assert "audited" in event["detail"]
    assert "device.label" in server.run("audit", "list").stdout


STRATEGY = "waves: [{name: canary, count: 1}, {name: full, percent: 100}]"


@pytest.fixture
def rollout(server: Server, tmp_path: Path) -> Any:
    strategy = tmp_path / "strategy.yaml"
    strategy.write_text(STRATEGY)
    started = server.json(
        "rollout", "start", RELEASE, "--to", "site=lab", "--strategy", str(strategy)
    )
    yield started
    server.run("rollout", "abort", started["id"])


def test_a_rollout_is_started_shown_steered_and_listed(
    server: Server, rollout: dict[str, Any]
) -> None:
    assert [wave["targeted"] for wave in rollout["waves"]] == [1, 1]
    assert {one["name"] for one in rollout["devices"]} == {"box-1", "box-2"}
    paused = server.json("rollout", "pause", rollout["id"], "--reason", "lunch")
    assert (paused["state"], paused["reason"]) == ("paused", "lunch")
    assert server.json("rollout", "resume", rollout["id"])["state"] == "running"
    shown = server.json("rollout", "show", rollout["id"])
    assert shown["id"] == rollout["id"]
    text = server.run("rollout", "show", rollout["id"]).stdout
    assert "canary" in text
    assert "box-1" in text
    assert server.json("rollout", "abort", rollout["id"])["state"] == "aborted"
    listed = server.json("rollout", "list")["rollouts"]
    assert listed[0]["id"] == rollout["id"]
    assert listed[0]["devices"] == []
    assert listed[0]["waves"][0]["targeted"] == 1
    assert "aborted" in server.run("rollout", "list", "--limit", "1").stdout


def test_watching_prints_one_document_per_line_until_the_end(
    server: Server, rollout: dict[str, Any]
) -> None:
    server.json("rollout", "abort", rollout["id"], "--reason", "enough")
    result = server.run("--json", "rollout", "watch", rollout["id"])
    assert result.exit_code == ExitCode.FAILED
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert documents[-1]["state"] == "aborted"
    assert "aborted" in server.run("rollout", "watch", rollout["id"]).stdout


def test_a_rollout_that_pauses_or_is_not_rolled_back_everywhere_is_a_failure(
    server: Server,
) -> None:
    # No box is connected: after the timeout there is too little data, and that pauses.
    strategy = server.directory.parent / "short.yaml"
    strategy.write_text(f"{STRATEGY}\nsilent_timeout_seconds: 0.1\n")
    arguments = ("rollout", "start", RELEASE, "--to", "site=lab", "--strategy", str(strategy))
    result = server.run(*arguments, "--json", "--wait")
    assert result.exit_code == ExitCode.FAILED
    document = json.loads(result.stdout)
    assert document["state"] == "paused"
    assert "is paused: wave canary inconclusive" in result.stderr
    result = server.run("rollout", "rollback", document["id"], "--wait", "--yes")
    # A device without a connection was assigned its previous release, and has not gone back.
    assert result.exit_code == ExitCode.FAILED
    assert "rolled_back" in result.stdout
    assert "not on every device" in result.stderr
    assert "(not yet back)" in result.stderr


def test_ctrl_c_ends_a_wait_and_not_the_rollout(server: Server) -> None:
    # A shell that runs the tests in the background ignores SIGINT, and children inherit that.
    foreground = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    command = [
        *(sys.executable, "-c", f"{foreground} from controlplane.__main__ import main; main()"),
        *("--context", str(server.directory / "admin.json")),
        *("rollout", "start", RELEASE, "--to", "site=lab", "--wait"),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as waiting:
        assert waiting.stderr is not None
        started = waiting.stderr.readline()
        assert started.startswith("Rollout ")
        while not waiting.stderr.readline().startswith("running"):
            assert waiting.poll() is None
        waiting.send_signal(signal.SIGINT)
        output, errors = waiting.communicate(timeout=30)
    rollout = started.split()[1].rstrip(":")
    assert (waiting.returncode, output) == (ExitCode.INTERRUPTED, "")
    assert f"interrupted; rollout {rollout} continues on the server" in errors
    assert f"flotilla rollout watch {rollout}" in errors
    assert "Aborted!" not in errors
    assert server.json("rollout", "show", rollout)["state"] == "running"
    timed_out = server.run("rollout", "watch", rollout, "--timeout", "1s")
    assert timed_out.exit_code == ExitCode.TIMED_OUT
    assert f"it did not end within 1s; rollout {rollout} continues" in timed_out.stderr
    server.json("rollout", "abort", rollout)


@pytest.mark.parametrize(
    ("code", "arguments", "message", "advice"),
    [
        (
            ExitCode.NOT_FOUND,
            ["device", "show", "nobody"],
            "no device 'nobody'",
            "flotilla device list",
        ),
        (
            ExitCode.USAGE,
            ["device", "list", "--to", "site=("],
            "'site=(' is not a selector term",
            "Write terms",
        ),
        (
            ExitCode.NOT_FOUND,
            ["release", "show", "acme/x@1"],
            "no release 'acme/x@1'",
            "flotilla release list",
        ),
        (ExitCode.NOT_FOUND, ["rollout", "show", "r"], "no rollout 'r'", "flotilla rollout list"),
        (ExitCode.NOT_FOUND, ["rollout", "watch", "r"], "no rollout 'r'", "flotilla rollout list"),
        (ExitCode.NOT_FOUND, ["rollout", "resume", "r"], "no rollout 'r'", "flotilla rollout list"),
        (
            ExitCode.USAGE,
            ["rollout", "start", "x", "--all"],
            "'x' is not a release reference",
            "publisher/name",
        ),
        (
            ExitCode.REFUSED,
            ["rollout", "start", RELEASE, "--to", "site=attic"],
            "no active device matches 'site=attic'",
            "flotilla device list",
        ),
        (ExitCode.NOT_FOUND, ["token", "revoke", "t"], "'t'", ""),
        (ExitCode.NOT_FOUND, ["access", "token", "revoke", "t"], "'t'", ""),
        (ExitCode.USAGE, ["access", "token", "create", "a/b"], "not a name for a token", ""),
        (
            ExitCode.USAGE,
            ["device", "label", "box-1", *(f"k{n}=" for n in range(70))],
            "more than 64",
            "",
        ),
    ],
)
def test_a_refusal_is_one_message_and_what_to_do_next(
    server: Server, code: ExitCode, arguments: list[str], message: str, advice: str
) -> None:
    result = server.run("--json", *arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert advice in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bad_strategy_names_its_mistake(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "strategy.yaml"
    for text, message in (
        ("waves: []", "not valid"),
        ("gates: {tokens_per_second: {min: 1}}", "not evaluated yet"),
        ("[", "neither YAML nor JSON"),
    ):
        path.write_text(text)
        result = server.run("rollout", "start", RELEASE, "--all", "--strategy", str(path))
        assert result.exit_code == ExitCode.USAGE
        assert message in result.stderr
    path.write_bytes(b"\xff\xfe")
    result = server.run("rollout", "start", RELEASE, "--all", "--strategy", str(path))
    assert result.exit_code == ExitCode.USAGE
    assert "cannot read the strategy" in result.stderr


def test_a_busy_device_is_named_with_its_rollout(server: Server, rollout: dict[str, Any]) -> None:
    result = server.run("rollout", "start", RELEASE, "--all")
    assert result.exit_code == ExitCode.REFUSED
    assert rollout["id"] in result.stderr


def test_a_wrong_token_and_a_wrong_ca_are_told_apart(
    server: Server, tmp_path: Path, certificate: str
) -> None:
    admin = json.loads((server.directory / "admin.json").read_text())
    context = tmp_path / "context.json"
    context.write_text(json.dumps({**admin, "token": "wrong"}))
    result = server.run("device", "list", context=context)
    assert result.exit_code == ExitCode.DENIED
    assert "the API token is unknown here" in result.stderr
    context.write_text(json.dumps({**admin, "ca_pem": certificate}))
    result = server.run("device", "list", context=context)
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "a certificate that the context's CA did not sign" in result.stderr


@pytest.mark.parametrize("wrong", ["authority", "port"])
def test_a_stranger_or_the_wrong_port_is_told_once_and_in_our_words(
    server: Server, tmp_path: Path, certificate: str, wrong: str
) -> None:
    admin = json.loads((server.directory / "admin.json").read_text())
    endpoints = json.loads((server.directory / "endpoints.json").read_text())
    changed, told = {
        "authority": ({"ca_pem": certificate}, "the context's CA did not sign"),
        "port": ({"server": endpoints["device"]}, "that is the device port"),
    }[wrong]
    context = tmp_path / "context.json"
    context.touch(mode=0o600)
    context.write_text(json.dumps({**admin, **changed}))
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_VERBOSITY"}
    command = [sys.executable, "-m", "controlplane", "--context", str(context), "device", "list"]
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (ExitCode.UNREACHABLE, "")
    message, advice = result.stderr.splitlines()
    assert told in message
    assert advice.startswith("  ")
