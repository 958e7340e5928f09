"""From a path or a Hub id to a local directory."""

from collections.abc import Callable, Sequence
from pathlib import Path

from backends.errors import InputError


def directory(source: str | Path, choose: Callable[[Sequence[str]], Sequence[str]], option: str) -> Path:
    """Return the local directory of `source`: a directory, or a Hub id "org/name" (with "@revision" if wanted).

    `choose` picks from a repository's file names those to download; they come with a progress bar, resume after a
    break, and stay in the Hub's cache. `option` names the flag in errors. Raises InputError where neither works.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise InputError(f"{option} {source}: no such directory, and not a Hub id such as org/name")
    return _download(str(source), choose, option)


def _download(source: str, choose: Callable[[Sequence[str]], Sequence[str]], option: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    name, _, revision = source.partition("@")
    try:
        files = HfApi().list_repo_files(name, revision=revision or None)
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(choose(files))))
    except GatedRepoError as error:
        raise InputError(f"{option} {name}: accept its licence on its page, then log in with: hf auth login") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{option} {name}: neither a local directory nor a repository on the Hub") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        return _cached(name, revision, choose, option, error)


def _cached(name: str, revision: str, choose: Callable, option: str, error: Exception) -> Path:
    """What the Hub's cache holds when the Hub cannot be reached."""
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
        files = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
        if all((path / file).exists() for file in choose(files)):
            return path
    except (OSError, InputError):
        pass
    raise InputError(
        f"{option} {name}: the Hub cannot be reached and its files are not in the local cache; "
        f"fetch them where there is a network (hf download {name} --local-dir DIR) and give {option} DIR"
    ) from error
