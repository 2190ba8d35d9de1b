"""Models in MLflow's registry: logged without pickle, versioned, found by alias, pulled back as plain files."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

import diffusion

from .artifacts import Artifacts
from .model_files import FILES_TAG, fetch_model, write_sums
from .refusals import check_absent
from .runs import DIGEST_TAG

if TYPE_CHECKING:
    import pandas as pd

    from .runs import Tracker

SERVED_MODEL = Path(__file__).parent.parent / "served_model.py"
PACKAGED = (
    *("__init__", "checkpoint", "gaussian", "layers", "loss", "norm", "process"),
    *("samplers", "sampling", "schedule", "seeding", "unet"),
)
"""the modules of `diffusion` that drawing samples takes: they import each other relatively"""
CHAMPION, CANDIDATE = "champion", "candidate"
SAMPLER_TAG = "ddpm.sampler"
REQUIREMENTS = ("torch", "numpy", "pandas", "pillow", "safetensors", "mlflow")


@dataclass(frozen=True)
class ModelVersion:
    """A version in the registry."""

    name: str
    version: str
    run_id: str
    tags: dict[str, str]
    model_id: str
    """of what was logged, which the version is a name of"""
    aliases: tuple[str, ...] = ()
    """where they were asked for"""

    @property
    def uri(self) -> str:
        """The one name of it that never moves."""
        return f"models:/{self.name}/{self.version}"

    @property
    def sampler(self) -> dict[str, Any]:
        """The sampler's settings that the model was made to be drawn with."""
        return dict(json.loads(self.tags.get(SAMPLER_TAG, "{}")))


def log_model(
    tracker: Tracker,
    run_id: str,
    name: str,
    files: dict[str, bytes],
    sampler: dict[str, Any],
    tags: dict[str, str],
    rows: pd.DataFrame,
) -> ModelVersion:
    """Log a model's files, by path, as a pyfunc of the training run, and register it as a version of `name`.

    `sampler` are the defaults of `predict`'s parameters; `rows` an example of its input, which MLflow draws at once to
    see that the model serves.
    """
    logged, sums_sha256 = _log_pyfunc(run_id, files, sampler, rows)
    try:
        tracker.client.create_registered_model(name)
    except MlflowException as err:
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {**tags, SAMPLER_TAG: json.dumps(sampler), FILES_TAG: sums_sha256}
    made = tracker.client.create_model_version(
        name,
        logged.model_uri,
        run_id=run_id,
        tags=tags,
        model_id=logged.model_id,  # without it a server refuses
    )
    return version_of(made)


def _log_pyfunc(run_id: str, files: dict[str, bytes], sampler: dict[str, Any], rows: pd.DataFrame) -> tuple[Any, str]:
    """What MLflow says of the model that it logged, and the sha256 of the list of its files' sums."""
    with tempfile.TemporaryDirectory() as temporary:
        package = _package(Path(temporary))
        folder = Path(temporary) / "model"
        folder.mkdir()
        for file_name, data in {**files, "package.txt": f"{package.name}\n".encode()}.items():
            (folder / file_name).parent.mkdir(parents=True, exist_ok=True)
            (folder / file_name).write_bytes(data)
        sums_sha256 = write_sums(folder, package, SERVED_MODEL)
        with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for type hints: the signature says it all
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(SERVED_MODEL),
                code_paths=[str(package)],
                artifacts={"model": str(folder)},
                signature=_signature(sampler),
                input_example=rows,
                pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in REQUIREMENTS],
            )
    return logged, sums_sha256


def describe(tracker: Tracker, model: ModelVersion, card: str, grid: bytes = b"") -> None:
    """Put a card (Markdown) on a version's page, and a picture of samples (PNG) beside what was logged as the model."""
    tracker.client.update_model_version(model.name, model.version, card)
    if grid:
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "samples.png"
            file.write_bytes(grid)
            tracker.client.log_model_artifact(model.model_id, str(file))


def set_alias(tracker: Tracker, model: ModelVersion, alias: str, tags: dict[str, str]) -> None:
    """Point an alias at a version, and write why in the version's tags."""
    tag_version(tracker, model, tags)
    tracker.client.set_registered_model_alias(model.name, alias, model.version)


def model_tags(tracker: Tracker, name: str) -> dict[str, str]:
    """Tags of a registered model as a whole. Raises ValueError, listing what exists, if there is none."""
    if tracker.is_empty:
        raise ValueError(f"there is no model {name}: nothing has been tracked in {tracker.uri} yet")
    try:
        return dict(tracker.client.get_registered_model(name).tags)
    except MlflowException as err:
        check_absent(err)
        raise ValueError(f"there is no model {name} in {tracker.uri}; {_known(tracker, name)}") from None


def tag_model(tracker: Tracker, name: str, tag: tuple[str, str]) -> None:
    """Set a tag, name and value, of a registered model as a whole."""
    tracker.client.set_registered_model_tag(name, *tag)


def tag_version(tracker: Tracker, model: ModelVersion, tags: dict[str, str]) -> None:
    """Set tags of a version."""
    for name, value in tags.items():
        tracker.client.set_model_version_tag(model.name, model.version, name, value)


def find_version(tracker: Tracker, name: str, number: str) -> ModelVersion | None:
    """The version of this number, unless it was deleted. Raises JobFailed if MLflow does not answer."""
    try:
        return version_of(tracker.client.get_model_version(name, number))
    except MlflowException as err:
        check_absent(err)
        return None


def model_version(tracker: Tracker, uri: str) -> ModelVersion:
    """The version behind NAME, NAME@alias, NAME/version or models:/… (champion, where nothing says which).

    Raises ValueError, listing what exists, if there is no such model, alias or version, or if it is somebody else's;
    JobFailed if MLflow does not answer.
    """
    if tracker.is_empty:
        raise ValueError(f"there is no model {uri}: nothing has been tracked in {tracker.uri} yet")
    name, at, alias = uri.removeprefix("models:/").partition("@")
    name, _, number = name.partition("/")
    try:
        if number and not at:
            made = tracker.client.get_model_version(name, number)
        else:
            made = tracker.client.get_model_version_by_alias(name, alias or CHAMPION)
    except MlflowException as err:
        check_absent(err)
        raise ValueError(f"there is no model {uri} in {tracker.uri}; {_known(tracker, name)}") from None
    found = version_of(made)
    if reason := why_foreign(found):
        raise ValueError(f"model must be a version that ddpm made: {reason}")
    return found


def why_foreign(model: ModelVersion) -> str:
    """Why nothing can be drawn from a version, or compared with it: somebody else registered it; "" if we did."""
    if DIGEST_TAG in model.tags:
        return ""
    return f"{model.uri} was registered by something else, and does not say what it was trained on"


def versions_of_run(tracker: Tracker, run_id: str) -> list[ModelVersion]:
    """The versions that a run registered, oldest first."""
    found = [version_of(made) for made in tracker.client.search_model_versions(f"run_id = '{run_id}'")]
    return with_aliases(tracker, sorted(found, key=lambda made: int(made.version)))


def with_aliases(tracker: Tracker, versions: list[ModelVersion]) -> list[ModelVersion]:
    """The same versions with their aliases, which a search leaves out."""
    names = {made.name for made in versions}
    aliases = {name: tracker.client.get_registered_model(name).aliases for name in names}
    return [
        replace(
            made, aliases=tuple(sorted(a for a, number in aliases[made.name].items() if str(number) == made.version))
        )
        for made in versions
    ]


def champion_of(tracker: Tracker, name: str) -> ModelVersion | None:
    """The version with the alias `champion`, if there is one. Raises JobFailed if MLflow does not answer."""
    try:
        return version_of(tracker.client.get_model_version_by_alias(name, CHAMPION))
    except MlflowException as err:
        check_absent(err)
        return None


def pull_model(model: ModelVersion) -> dict[str, bytes]:
    """The files of a model (weights and config), by name. Raises JobFailed, as `pull_model_into`."""
    with tempfile.TemporaryDirectory() as temporary:
        return pull_model_into(model, Path(temporary) / "model")


def pull_model_into(model: ModelVersion, folder: Path) -> dict[str, bytes]:
    """The same, by way of a folder that keeps what was pulled when it is interrupted.

    Raises JobFailed, in one line, if the model is damaged (see `model_files`), or MLflow does not give it.
    """
    return fetch_model(Artifacts(model.uri, f"model {model.uri}"), model.tags, folder)


def _package(parent: Path) -> Path:
    """A copy of what sampling takes of `diffusion`, as a package named by the hash of its content."""
    source = Path(str(diffusion.__file__)).parent
    modules = [source / f"{name}.py" for name in PACKAGED]
    content = hashlib.sha256(b"\0".join(module.read_bytes() for module in modules)).hexdigest()[:12]
    package = parent / f"ddpm_{content}"
    package.mkdir()
    for module in modules:
        shutil.copy(module, package)
    return package


def _signature(sampler: dict[str, Any]) -> ModelSignature:
    types = {str: DataType.string, int: DataType.long, float: DataType.double}
    return ModelSignature(
        inputs=Schema([ColSpec("long", "seed"), ColSpec("long", "label", required=False)]),
        outputs=Schema([ColSpec("long", "seed"), ColSpec("binary", "png")]),
        params=ParamSchema([ParamSpec(name, types[type(value)], value) for name, value in sampler.items()]),
    )


def version_of(made: Any) -> ModelVersion:
    """MLflow's version as ours."""
    model_id = made.source.removeprefix("models:/")  # MLflow 3.17 leaves the field of that name empty
    return ModelVersion(made.name, str(made.version), str(made.run_id), dict(made.tags), model_id)


def _known(tracker: Tracker, name: str) -> str:
    """What there is instead, in a few words."""
    try:
        model = tracker.client.get_registered_model(name)
    except MlflowException as err:
        check_absent(err)
        models = [model.name for model in tracker.client.search_registered_models(max_results=20)]
        return f"there are: {', '.join(models)}" if models else "no model is registered there"
    newest = tracker.client.search_model_versions(f"name = '{name}'", max_results=20, order_by=["version_number DESC"])
    found = [*(f"{name}@{alias}" for alias in model.aliases), *(f"{name}/{made.version}" for made in newest)]
    return f"{name} has " + (", ".join(found) if found else "no version")
