"""From what a user calls a model to a checkpoint on this disk: the bundled one, a folder, a file, or a Hub id.

The network is touched in :func:`_download` alone, and not at all when offline. Finding a model takes the standard
library alone; opening it, the networks' classes.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glimt.errors import CheckpointError, MissingDependencyError
from glimt.models.zoo import BUNDLED, KNOWN
from glimt.suggest import did_you_mean, nearest
from glimt.weights.folder import ROLES, TINY, CheckpointFolder, Component, read_folder
from glimt.weights.official import is_official_folder, transformers, with_base

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_TRUE = {"1", "on", "yes", "true"}


def open_model(
    model: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    allow_pickle: bool = False,
) -> CheckpointFolder:
    """Find a model and match what its files say they hold with its networks. Reads no tensor.

    Args:
        model: see :func:`resolve`.
        base: where text encoder, VAE, tokenizer and scheduler come from when ``model`` is a transformer alone
            (a single file, or a folder of official Wan files).

    Raises:
        CheckpointError: not found, or anything that is wrong with it, all components at once: what their files lack,
            have too much, or have in other shapes. (Pickles do not say before they are loaded.)
    """
    path = resolve(model, offline=offline, allow_pickle=allow_pickle)
    asked, match = os.fspath(model), _hub_match(model)
    name = match["id"] if match else BUNDLED if asked == BUNDLED else ""
    folder = _open_found(path, name, base, offline, allow_pickle)
    # The Hub's cache has a folder for each commit.
    origin = replace(folder.origin, source=asked, revision=path.name if match else "")
    return replace(folder, origin=origin)


def _open_found(
    path: Path, name: str, base: str | os.PathLike[str] | None, offline: bool | None, allow_pickle: bool
) -> CheckpointFolder:
    """What is at ``path``: a whole checkpoint, or transformers alone."""
    if path.is_dir() and not is_official_folder(path):
        if base is not None:
            raise CheckpointError(
                f"{path}: is a whole checkpoint, so base={os.fspath(base)!r} has no use; leave it out"
            )
        return read_folder(path, name=name, allow_pickle=allow_pickle)
    return _open_parts(path, base, offline, allow_pickle)


def _open_parts(
    path: Path, base: str | os.PathLike[str] | None, offline: bool | None, allow_pickle: bool
) -> CheckpointFolder:
    """Transformers alone and the rest from a base; what is wrong with either is told together."""
    found: list[Component] = []
    whole: CheckpointFolder | None = None
    problems: list[str] = []
    try:
        found = transformers(path, allow_pickle=allow_pickle)
    except CheckpointError as error:
        problems += error.problems
    try:
        whole = open_model(base, offline=offline, allow_pickle=allow_pickle) if base is not None else None
    except CheckpointError as error:
        problems += error.problems
    if problems:
        raise CheckpointError(*problems)
    return with_base(path, found, whole)


def resolve(model: str | os.PathLike[str], *, offline: bool | None = None, allow_pickle: bool = False) -> Path:
    """The local folder or file of a model; downloads it first where it is a Hub id that is not here yet.

    Args:
        model: ``"glimt-world"`` (bundled), a folder, a file, or a Hub id ``"org/name"`` with an optional
            ``"@revision"``. What exists on disk is taken before the Hub.
        offline: True never touches the network, False may, None follows ``HF_HUB_OFFLINE``.
        allow_pickle: also download weights that are pickles.

    Raises:
        CheckpointError: no such model (with near names), not cached while offline, or a download that failed.
        MissingDependencyError: a Hub id without huggingface_hub installed.
    """
    name = os.fspath(model)
    if name == BUNDLED:
        return _bundled()
    path = Path(name).expanduser()
    if name and _exists(path):
        return path
    if _is_path(model):
        raise CheckpointError(f"{name}: no such file or folder{_near_paths(path)}")
    match = _hub_match(model)
    if match is None:
        raise CheckpointError(
            f"model {name!r} is neither a folder, a file, nor a Hub id 'org/name'{_near_models(name)}"
        )
    return _download(match["id"], match["revision"], _is_offline(offline), allow_pickle)


def whereabouts(model: str) -> str:
    """Where a model would come from: ``bundled``, ``disk``, ``downloaded``, ``hub`` (not here yet) or ``nowhere``.

    Looks at this machine only, and not at whether what is there is whole: a download may have been begun only.
    """
    if model == BUNDLED:
        return "bundled" if _bundled_folder() else "nowhere"
    match = _hub_match(model)
    if match is None or _is_path(model):
        return "disk" if _exists(Path(model).expanduser()) else "nowhere"
    folder = _hub_cache() / f"models--{match['id'].replace('/', '--')}" / "snapshots"
    return "downloaded" if folder.is_dir() else "hub"


@contextlib.contextmanager
def quiet_downloads(*models: str | Path | None) -> Iterator[None]:
    """While this lasts, the Hub shows no progress of what it downloads, if any of ``models`` may come from there."""
    if not any(isinstance(model, str) and whereabouts(model) in ("downloaded", "hub") for model in models):
        yield
        return
    bars = _huggingface_hub().utils
    were_shown = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            bars.enable_progress_bars()


def _hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads, by its own environment variables; importing it takes longer."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def _bundled_folder() -> Path | None:
    spec = find_spec("glimt_world")  # finds a top-level package without importing it
    folders = [Path(place) / "checkpoint" for place in (spec.submodule_search_locations or [])] if spec else []
    return next((folder for folder in folders if (folder / "model_index.json").is_file()), None)


def _bundled() -> Path:
    folder = _bundled_folder()
    if folder is not None:
        return folder
    raise CheckpointError(
        f"the bundled model {BUNDLED!r} is not in this installation (no glimt_world/checkpoint);"
        " reinstall glimt, or give a folder or a Hub id"
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no path can have
        return False


def _is_path(model: str | os.PathLike[str]) -> bool:
    if not isinstance(model, str):
        return True
    return model.startswith((".", "~", os.sep)) or model.endswith(_FILE_SUFFIXES) or "\\" in model


def _hub_match(model: str | os.PathLike[str]) -> re.Match[str] | None:
    return _HUB_ID.fullmatch(model) if isinstance(model, str) and not _exists(Path(model).expanduser()) else None


def _near_models(name: str) -> str:
    """Known models that are meant perhaps, by full or by short name; all of them when none is near."""
    full = {key.rpartition("/")[2]: key for key in KNOWN} | {key: key for key in KNOWN}
    near = list(dict.fromkeys(full[match] for match in nearest(name[:200], full)))
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; known models: {', '.join(KNOWN)}"


def _near_paths(path: Path) -> str:
    try:
        beside = [child.name for child in path.parent.iterdir()]
    except (OSError, ValueError):
        return f"; the folder {path.parent} does not exist either"
    return did_you_mean(path.name, beside)


def _is_offline(offline: bool | None) -> bool:
    if offline is not None:
        return offline
    return any(os.environ.get(key, "").strip().lower() in _TRUE for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def download_patterns(*, allow_pickle: bool = False) -> list[str]:
    """Which files of a Hub repository are fetched: configs, tokenizers and safetensors of what glimt reads."""
    patterns = ["model_index.json", "config.json", "diffusion_pytorch_model*"]
    for name, role in ROLES.items():
        if not role.stem:
            patterns.append(f"{name}/*")
            continue
        endings = ["safetensors", "safetensors.index.json", *(["bin"] if allow_pickle else [])]
        series = [f"{name}/{role.stem}{middle}.{end}" for middle in ("", "-*") for end in endings]
        patterns += [f"{name}/{role.config}", *series]
    patterns.append(f"{TINY}/model.safetensors")
    return [*patterns, *(f"{expert}/*" for expert in ("high_noise_model", "low_noise_model"))]


def _download(repo: str, revision: str | None, offline: bool, allow_pickle: bool) -> Path:
    hub = _huggingface_hub()
    try:
        folder = hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=download_patterns(allow_pickle=allow_pickle),
            ignore_patterns=None if allow_pickle else ["*.bin", "*.pt", "*.pth", "*.ckpt"],
            local_files_only=offline,
        )
    except Exception as error:  # requests, httpx, OS and Hub errors, by version; each means there is no model
        raise CheckpointError(_download_problem(hub, repo, revision, offline, error)) from error
    return Path(folder)


def _download_problem(hub: Any, repo: str, revision: str | None, offline: bool, error: Exception) -> str:
    asked = f"{repo}@{revision}" if revision else repo
    if offline:
        command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
        return (
            f"model {asked!r} is not in the local cache and the network is off (offline=True or HF_HUB_OFFLINE);"
            f" run once with the network: {command}, or give a local folder{did_you_mean(repo, KNOWN)}"
        )
    errors = hub.errors
    if isinstance(error, errors.GatedRepoError):
        return f"model {asked!r} is gated: accept its terms on https://huggingface.co/{repo}, then run: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"model {repo!r} has no revision {revision!r} on the Hub"
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return f"model {asked!r} is no local path and not on the Hub (or private){did_you_mean(repo, KNOWN)}"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"model {asked!r} could not be downloaded and is not in the local cache: {first}"


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise MissingDependencyError("huggingface_hub", "download models by Hub id") from error
    return huggingface_hub
