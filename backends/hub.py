"""From a path or a Hub id to a local directory."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from backends.errors import InputError

Choose = Callable[[Sequence[str]], Sequence[str]]
TIMEOUT_S = 5.0  # for each of the Hub's addresses; it is asked once, without retries


def directory(source: str | Path, choose: Choose, option: str, keys: Sequence[str] = ()) -> Path:
    """Return the local directory of `source`: a directory, or a Hub id "org/name" (with "@revision" if wanted).

    `choose` picks from a repository's file names those to download; they come with a progress bar, resume after a
    break, and stay in the Hub's cache, which serves them where the Hub cannot be reached. `option` names the flag in
    errors, `keys` the short names that it also takes. Raises InputError where neither works, after a few `TIMEOUT_S` at
    most.
    """
    path = Path(source).expanduser()
    if str(source) and path.is_dir():  # an empty name would be this folder
        return path
    if path.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise InputError(
            f"{option} {source}: no such directory, and not a Hub id such as org/name{_known(source, keys)}"
        )
    return _download(str(source), choose, option)


def _known(source: str | Path, keys: Sequence[str]) -> str:
    if not keys:
        return ""
    close = get_close_matches(str(source), keys, 1)
    return f"; did you mean {close[0]}?" if close else f", nor one of {', '.join(keys)}"


def _download(source: str, choose: Choose, option: str) -> Path:
    """Ask for the list of files without retries (the listing calls wait 23 s before they give up), then fetch some."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    transport_error: type[Exception] = HfHubHTTPError.__mro__[1]  # HTTPError of httpx or httpx2, whichever it uses
    name, _, revision = source.partition("@")
    try:
        info = HfApi().model_info(name, revision=revision or None, timeout=TIMEOUT_S)
        files = [file.rfilename for file in info.siblings or []]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(choose(files))))
    except HFValidationError as error:
        raise InputError(f"{option} {source}: no such directory, and not a Hub id such as org/name") from error
    except (transport_error, OSError) as error:
        cached = _cached(name, revision, choose)
        if cached is None:
            raise InputError(f"{option} {source}: {_why(error, name, option)}") from error
        return cached


def _cached(name: str, revision: str, choose: Choose) -> Path | None:
    """The Hub's cache of a repository if all that `choose` wants is there."""
    from huggingface_hub import snapshot_download

    try:
        # With a pattern that nothing matches: whether the files of the other layouts are there does not matter.
        path = Path(snapshot_download(name, revision=revision or None, local_files_only=True, allow_patterns=["-"]))
        files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        return path if choose(files) else None
    except (OSError, InputError):
        return None


def _why(error: Exception, name: str, option: str) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"accept its licence at huggingface.co/{name}, then log in with: hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return "neither a local directory nor a repository on the Hub that you may read"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision"
    return (
        "there is no such directory, the Hub cannot be reached and its files are not in the local cache; "
        f"fetch them where there is a network (hf download {name} --local-dir DIR) and give {option} DIR"
    )
