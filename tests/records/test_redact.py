"""What must disappear and what must survive. The credentials are made up in the issuers' formats."""

import pytest

from harness.records.redact import REDACTED, is_secret_name, redact, redact_tree

HEX40 = "0123456789abcdef0123456789abcdef01234567"
HEX64 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ALNUM36 = "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dF3hJ5"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"

# (text, the part of it that must not survive)
SECRETS = [
    (f"login with hf_{ALNUM36} failed", f"hf_{ALNUM36}"),
    (f"wandb login {HEX40}", HEX40),
    (f"wandb login --relogin {HEX40}", HEX40),
    (f"WANDB_API_KEY={HEX40}", HEX40),
    (f"wandb.api_key: '{HEX40}'", HEX40),
    (f"wandb_v1_{ALNUM36}_{ALNUM36}", ALNUM36),
    (f"key local-{HEX40} of the server", HEX40),
    (f"machine api.wandb.ai login user password {HEX40}", HEX40),
    (f"machine api.wandb.ai\n  login user\n  password {HEX40}\n", HEX40),
    (f"OpenAI said: invalid key sk-proj-{ALNUM36}", ALNUM36),
    (f"sk-ant-api03-{ALNUM36}-{ALNUM36}", ALNUM36),
    (f"git clone ghp_{ALNUM36}", ALNUM36),
    (f"github_pat_11ABCDEFG0{ALNUM36}_{ALNUM36}", ALNUM36),
    ("glpat-Xy12_ab34CD56ef78GH90", "Xy12_ab34CD56ef78GH90"),
    ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN7EXAMPLE"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI"),
    ("AIza" + "SyA-1234567890abcdefghijklmnopqrstu", "1234567890abcdef"),
    ("xoxb-123456789012-1234567890123-AbCdEfGhIjKl", "123456789012"),
    (f"charged with sk_live_{ALNUM36}", ALNUM36),
    *((f"git clone gh{kind}_{ALNUM36}", ALNUM36) for kind in "opsur"),
    (f"api_org_{ALNUM36}", ALNUM36),
    ("ASIAIOSFODNN7EXAMPLE", "IOSFODNN7EXAMPLE"),
    (f"ya29.{ALNUM36}", ALNUM36),
    (f"xapp-1-{ALNUM36}", ALNUM36),
    (f"twine upload with pypi-{ALNUM36}", ALNUM36),
    (f"npm_{ALNUM36}", ALNUM36),
    ("Authorization: Bearer abc123def456", "abc123def456"),
    ("'Authorization': 'Basic dXNlcjpwYXNzd29yZA=='", "dXNlcjpwYXNzd29yZA"),
    ("curl -H 'X-Api-Key: 77aa88bb99cc'", "77aa88bb99cc"),
    ("used bearer a1b2c3d4e5f6", "a1b2c3d4e5f6"),
    (f"cookie {JWT} expired", "dozjgNryP4J3jVmNHl0w5N"),
    ("https://user:hunter22@example.org/simple", "hunter22"),
    ("postgresql://optuna:s3cr3t@db.cluster:5432/study", "s3cr3t"),
    ("remote https://0123456789abcdefghij@github.com/a/b", "0123456789abcdefghij"),
    ("https://example.org/d?token=abcdef0123456789&x=1", "abcdef0123456789"),
    ("https://x.blob.core.windows.net/c?sv=1&sig=Zm9vYmFy%3D", "Zm9vYmFy"),
    (f"https://b.s3.amazonaws.com/k?X-Amz-Signature={HEX64}&v=1", HEX64),
    ("hub.token=abcd1234efgh", "abcd1234efgh"),
    ("error: token=abcd1234efgh was refused", "abcd1234efgh"),
    ("--token abcd1234efgh --steps 5", "abcd1234efgh"),
    ("--api-key=swordfish", "swordfish"),
    ("password: swordfish", "swordfish"),
    ('{"client_secret": "sword \\" fish"}', "fish"),
    ("{'clientSecret': 'swordfish'}", "swordfish"),
    ("db_password='two words'", "two words"),
    ("MY_SERVICE_KEY=swordfish", "swordfish"),
    ("hf_token: shortone", "shortone"),
    ("+api_key = 'swordfish'", "swordfish"),
    (
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKCAQ\n-----END RSA PRIVATE KEY-----",
        "IBAAKCAQ",
    ),
    ("+-----BEGIN OPENSSH PRIVATE KEY-----\n+b3BlbnNzaC1rZXk (cut here)", "b3BlbnNzaC1rZXk"),
]

INNOCENT = [
    f"commit {HEX40}",
    f'"git_commit": "{HEX40}"',
    f"revision={HEX40}",
    f'"fingerprint": "sha256:{HEX64}"',
    f"index {HEX40[:7]}..{HEX40[7:14]} 100644",
    "eval.max_new_tokens=64",
    "max_new_tokens: 64, loss_tokens: 12345678",
    "tokenizer: models/stories260K/tokenizer.json",
    "tokenizer=hf-internal-testing/llama-tokenizer",
    "TOKENIZERS_PARALLELISM=false",
    "eval/token_accuracy: 0.934512",
    "throughput/input_tokens_per_second: 12345.678",
    "time per token: 0.012345 ms, nats/token: 3.746123",
    "eos_token: <|endoftext|>, pad_token='[PAD]', bos_token=startoftext",
    "SyntaxError: unexpected token: identifier",
    "unknown key: lora.rnk; near names: lora.rank",
    "sort_key=step, cache_key: nf4_dq_64",
    "KeyError: 'model.layers.0.self_attn.k_proj'",
    "api_key: null, password=None, use_auth_token=False",
    "git@github.com:lab/project.git",
    "ssh://git@github.com/lab/project.git",
    "https://example.org:8080/simple/@scope/x",
    "risk-free task-based ask-me-anything sk-learn-contrib-packages",
    "Bearer of bad news",
    "run nf4-r8-s0-3f2a9c1b: lora.rank=8 lora.alpha_over_rank=2.0 optim.lr=0.0002",
    "-----BEGIN CERTIFICATE-----\nMIIEow\n-----END CERTIFICATE-----",
    "hf_hub_download and hf_transfer_enabled_by_default are names",
    "2026-11-21T01:54:47Z secretary passed the keyboard",
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_secret_disappears(text: str, secret: str) -> None:
    redacted = redact(text, environ={})
    assert secret not in redacted
    assert REDACTED in redacted
    assert redact(redacted, environ={}) == redacted


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_text_survives(text: str) -> None:
    assert redact(text, environ={}) == text


def test_what_surrounds_a_secret_survives() -> None:
    text = 'run with {"api_key": "swordfish", "steps": 5} and --token abcd1234efgh --steps 5'
    assert redact(text, environ={}) == (
        f'run with {{"api_key": "{REDACTED}", "steps": 5}} and --token {REDACTED} --steps 5'
    )


def test_values_of_secret_environment_variables_disappear_from_any_text() -> None:
    environ = {
        "LAB_TOKEN": "plain-looking words",
        "DB_PASSWORD": "p@ss/word",
        "LAB_TOKEN_FILE": "/home/someone/token",
        "TOKENIZERS_PARALLELISM": "parallel-value",
        "PWD": "/home/someone",
        "SSH_AUTH_SOCK": "/tmp/agent.sock",
        "SHORT_KEY": "on",
        "PORT_KEY": "88888888",
    }
    text = (
        "plain-looking words; db.example/p%40ss%2Fword; /home/someone/token; parallel-value; "
        "/tmp/agent.sock; on; 88888888"
    )
    assert redact(text, environ) == (
        f"{REDACTED}; db.example/{REDACTED}; /home/someone/token; parallel-value; "
        "/tmp/agent.sock; on; 88888888"
    )


def test_own_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_SECRET", "an unremarkable phrase")
    assert redact("it was an unremarkable phrase") == f"it was {REDACTED}"


def test_tree_goes_by_the_names_of_its_keys() -> None:
    tree = {
        "tracker": {"api_key": "x", "project": "qlora-harness", "tags": ["a", "b"]},
        "credentials": {"user": "me", "answers": ["one", "two"], "port": 5432, "ask": True},
        "eval": {"max_new_tokens": 64, "eos_token": "</s>"},
        "hf_token": None,
        "data": {"path": f"https://user:pw@host/rows.jsonl#hf_{ALNUM36}", "sha256": HEX64},
        "git": {"commit": HEX40},
    }
    assert redact_tree(tree, environ={}) == {
        "tracker": {"api_key": REDACTED, "project": "qlora-harness", "tags": ["a", "b"]},
        "credentials": {
            "user": REDACTED,
            "answers": [REDACTED, REDACTED],
            "port": 5432,
            "ask": True,
        },
        "eval": {"max_new_tokens": 64, "eos_token": "</s>"},
        "hf_token": None,
        "data": {"path": f"https://{REDACTED}@host/rows.jsonl#{REDACTED}", "sha256": HEX64},
        "git": {"commit": HEX40},
    }


def test_every_key_of_the_configuration_is_innocent() -> None:
    from dataclasses import fields, is_dataclass

    from harness.config.schema import RunConfig

    def names(config: object) -> list[str]:
        assert is_dataclass(config)
        below = [getattr(config, field.name) for field in fields(config)]
        return [field.name for field in fields(config)] + [
            name for value in below if is_dataclass(value) for name in names(value)
        ]

    found = names(RunConfig())
    assert "max_new_tokens" in found
    assert [name for name in found if is_secret_name(name)] == []


@pytest.mark.parametrize(
    "text",
    [  # pieces that begin what no pattern ends
        piece * (300_000 // len(piece))
        for piece in (
            "a",
            "-",
            "'",
            "a: ",
            "eyJ",
            "key = ",
            "https://",
            "password='",
            "-----BEGIN PRIVATE KEY",
        )
    ],
    ids=lambda text: text[:10],
)
@pytest.mark.timeout(60)
def test_work_grows_linearly_with_the_text(text: str) -> None:
    assert redact(text, environ={})  # quadratic work would take minutes
