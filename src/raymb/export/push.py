"""A verified export as a repository of the Hugging Face hub. Whether that can work is found out before the training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from raymb.errors import RunFailed, SpecError, last_line

_WRITES = "repo.write"
"""The permission of a fine-grained token."""
_LOGIN = "export HF_TOKEN=... with a token that may write, or hf auth login"


def check_push(repository: str | None, public: bool) -> None:
    """That this user may write there, and that nothing becomes public by mistake. Writes nothing.

    Args:
        repository: --push_to_hub; None asks nothing.

    Raises:
        SpecError: no token, one that may not write there, a public repository without --hub_public, or no hub.
    """
    if repository is None:
        return
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    flag, token = f"--push_to_hub {repository}", get_token()
    if token is None:
        raise SpecError(f"{flag} needs a token, and there is none", _LOGIN)
    api = HfApi()
    try:
        if problem := _why_not(api.whoami(), repository):
            raise SpecError(f"{flag}: {problem}", _LOGIN)
        info = api.model_info(repository)
    except RepositoryNotFoundError:
        return  # it will be made
    except SpecError:
        raise
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise SpecError(f"{flag}: the hub does not know the token", _LOGIN) from None
        raise SpecError(f"{flag}: the hub answers {last_line(error)}", "try again later, or leave it out") from None
    except Exception as error:  # httpx's, offline mode's or the system's
        raise SpecError(f"{flag}: the hub cannot be reached ({last_line(error)})", "leave it out") from None
    if not info.private and not public:
        raise SpecError(
            f"{flag} is a public repository, and what is pushed there is public",
            "--hub_public says that this is meant; or name another one, which is made private",
        )


def push(directory: Path, repository: str, public: bool) -> str:
    """Upload a directory as one commit; a repository that is not there is made, private unless public.

    Returns:
        the address of its page.

    Raises:
        RunFailed: with where the directory is, and the command that pushes it again.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        page = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=directory, commit_message=f"{directory.name} of raymb")
    except Exception as error:  # the hub's, httpx's, the system's, or hf-xet's, which are plain ones
        words = ["hf", "upload", repository, str(directory), ".", *([] if public else ["--private"])]
        raise RunFailed(
            f"{directory} is whole, and is not pushed to {repository}: {last_line(error)}",
            f"push it again: {shlex.join(words)}",
        ) from error
    return str(page)


def repositories(repository: str, model: Path, adapter: Path | None) -> dict[Path, str]:
    """Directory to the repository it is pushed to: a merged model's has a name of its own beside its adapter's.

    Args:
        adapter: None where the whole model was trained.
    """
    return {model: repository} if adapter is None else {adapter: repository, model: f"{repository}-merged"}


def _why_not(who: dict[str, Any], repository: str) -> str:
    """Why a token may not write into a repository, by what the hub says of it; "" where it may."""
    owner, name = repository.split("/")[0], who["name"]
    token = who.get("auth", {}).get("accessToken", {})
    shown = f"the token {token['displayName']!r} of {name}" if token.get("displayName") else f"the token of {name}"
    roles = {one["name"]: one.get("roleInOrg", "write") for one in who.get("orgs", ())}
    if owner != name and owner not in roles:
        return f"the token is {name}'s, who is no member of {owner}"
    if roles.get(owner) == "read":
        return f"{name} may only read in {owner}"
    if token.get("role") == "read":
        return f"{shown} may only read"
    scopes = token.get("fineGrained", {}).get("scoped", ())
    if token.get("role") == "fineGrained" and not any(
        _WRITES in scope["permissions"] and scope["entity"].get("name") in (owner, repository) for scope in scopes
    ):
        return f"{shown} has no permission to write there ({_WRITES})"
    return ""
