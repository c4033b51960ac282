"""Chat templates are programs of strangers: whatever they do is one line, and ends."""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from pathlib import Path

import pytest
import tiny_models
from spoiled import Command
from transformers import AutoTokenizer

from llmc.calibration import chat
from llmc.errors import CalibrationError

TALK = [{"role": "user", "content": "hello"}]
REFUSED = "f.jsonl:1: the chat template refuses this conversation ("

TEMPLATES = {
    "{{ 1/0 }}": "division by zero",
    "{{ 1 + 'a' }}": "unsupported operand type",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% include '/etc/passwd' %}": "no loader for this environment specified",
    "{{ raise_exception('roles must alternate') }}": "roles must alternate",
    "{{ messages.append(1) }}": "is unsafe",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{% for m in messages %}": "Unexpected end of template",
    "{{ (messages[0].content * 1000000) * 1000000 }}": "it takes too much memory",
    "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}": "does not end within",
    "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}": "too much memory",
    "{{ 7 ** (7 ** 12) }}": "does not end within",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    tiny_models.corpus(folder)
    return tiny_models.build("llama", folder / "model")


@pytest.mark.parametrize(("template", "why"), TEMPLATES.items(), ids=range(len(TEMPLATES)))
def test_templates_that_do_not_end_well(model: Path, template: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "STEPS", 200_000)
    monkeypatch.setattr(chat, "SECONDS", 2)
    monkeypatch.setattr(chat, "MEMORY", 1 << 28)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM), sys.gettrace()
    with pytest.raises(CalibrationError) as caught:
        chat.render(TALK, "f.jsonl:1", tokenizer)
    assert str(caught.value).startswith(REFUSED)
    assert why in str(caught.value)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM), sys.gettrace()) == before


def test_off_the_main_thread(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "STEPS", 200_000)
    tokenizer = AutoTokenizer.from_pretrained(model)
    found: list[str] = []

    def work(template: str) -> None:
        tokenizer.chat_template = template
        try:
            found.append(chat.render(TALK, "f.jsonl:1", tokenizer))
        except CalibrationError as error:
            found.append(str(error))

    for template in ("{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}", "ok"):
        thread = threading.Thread(target=work, args=(template,))
        thread.start()
        thread.join()
    assert found[0].startswith(f"{REFUSED}it does not end within")
    assert found[1] == "ok"


def test_a_run(command: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    (model / "chat_template.jinja").write_text("{{ 1/0 }}")
    calibration = f"{{source: {tmp_path / 'chat.jsonl'}, chat_template: true, num_samples: 4, sequence_length: 32}}"
    stages = "[{method: gptq, group_size: 32}]"
    (tmp_path / "r.yaml").write_text(f"model: {model}\ncalibration: {calibration}\nstages: {stages}\n")
    outcome = command("run", tmp_path / "r.yaml", "-o", tmp_path / "out")
    assert outcome.code == 2
    assert outcome.line.endswith(
        "chat.jsonl:1: the chat template refuses this conversation (division by zero); "
        "repair the template, or calibrate on plain text"
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)
