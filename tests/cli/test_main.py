"""The command answers at once, names the nearest right spelling, and never shows a trace."""

from __future__ import annotations

import inspect
import json

import pytest
from command import done, python, refused, svfit

from svfit_diffusion.adapters import choosing, pipeline_methods
from svfit_diffusion.cli.main import app
from svfit_diffusion.cli.options import weighted
from svfit_diffusion.errors import ConfigError
from svfit_diffusion.pipeline_methods import METHODS
from svfit_diffusion.version import __version__

COMMANDS = sorted(
    command.name for command in app.registered_commands if command.name not in ("train", "app")
)


def test_help_needs_no_torch() -> None:
    code = """
import sys
sys.argv = ["svfit", {words}]
from svfit_diffusion.cli.main import main
try:
    main()
except SystemExit:
    pass
print("torch" in sys.modules, "diffusers" in sys.modules)
"""
    for words in ("'--help'", "'export', '--help'", "'exprt'", "'generate', '--sed', '1'"):
        assert python(code.format(words=words)).endswith("False False\n"), words


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does(command: str) -> None:
    said = done(command, "--help")
    assert f"svfit {command}" in said
    assert "-h, --help" in said


def test_version() -> None:
    assert done("--version").strip() == f"svfit-diffusion {__version__}"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["exprt"], "export"),
        (["info", "x", "--jsn"], "--json"),
        (["generate", "x", "--guidance_scal=3"], "--guidance_scale"),
        (["train", "--instance_promt=x"], "--instance_prompt"),
        (["train", "--no-center-crp"], "--center_crop"),
        (["app", "--prot=80"], "--port"),
    ],
)
def test_the_nearest_spelling_is_named(words: list[str], meant: str) -> None:
    assert meant in refused(*words)


def test_train_and_app_explain_their_own_flags() -> None:
    assert "--pretrained_model_name_or_path" in svfit("train", "--help").out
    assert "--max_photos" in svfit("app", "--help").out
    said = svfit("fleet", "train", "--help").out
    assert "--subjects_per_pass" in said
    assert "--pretrained_model_name_or_path" in said


def test_completion_knows_the_settings_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def complete(words: str) -> list[str]:
        monkeypatch.setenv("_SVFIT_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        return svfit().out.split()

    assert complete("svfit train --rank 3 --instance") == [
        "--instance_data_dir",
        "--instance_prompt",
    ]
    assert complete("svfit fleet train --subjects") == ["--subjects_per_pass"]
    assert complete("svfit export --ra") == ["--rank"]
    assert complete("svfit gen") == ["generate"]


@pytest.mark.parametrize(
    ("text", "source", "strength"),
    [
        ("rex", "rex", 1.0),
        ("rex:0.7", "rex", 0.7),
        ("user/rex:-1", "user/rex", -1.0),
        ("out/rex.safetensors:1e-1", "out/rex.safetensors", 0.1),
        (r"C:\rex", r"C:\rex", 1.0),
        (r"C:\rex:0.5", r"C:\rex", 0.5),
        ("a:b/c", "a:b/c", 1.0),
    ],
)
def test_an_adapter_and_its_strength(text: str, source: str, strength: float) -> None:
    assert weighted(text) == (source, strength)


@pytest.mark.parametrize("text", ["rex:", "rex:x", "rex:nan", "rex:inf"])
def test_a_strength_is_a_finite_number(text: str) -> None:
    with pytest.raises(ConfigError, match=r"rex:0\.7"):
        weighted(text)


def test_doctor_names_what_is_missing() -> None:
    facts = json.loads(done("doctor", "--json"))
    assert facts["svfit-diffusion"]
    assert facts["app"] == "installed"
    assert "bases" in facts["cache"]
    assert "torch" in done("doctor")


def test_pipelines_have_all_methods_whichever_is_imported_first() -> None:
    first = "import svfit_diffusion; from diffusers import StableDiffusionPipeline as P; "
    second = "from diffusers import StableDiffusionPipeline as P; import svfit_diffusion; "
    third = "import svfit_diffusion.interchange; from diffusers import DiffusionPipeline as P; "
    for order in (first, second, third):
        out = python(order + "print(P.load_svfit_weights.__name__, svfit_diffusion.inject)")
        assert out.startswith("load_svfit_weights <function inject")


def test_the_table_of_methods_is_complete() -> None:
    for module in (pipeline_methods, choosing):
        named = {
            name
            for name, function in vars(module).items()
            if inspect.isfunction(function)
            and function.__module__ == module.__name__
            and "svfit" in name
            and not name.startswith("_")
        }
        assert named == set(METHODS[module.__name__])


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    import svfit_diffusion

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = svfit_diffusion.nothing
    assert "inject" in dir(svfit_diffusion)
