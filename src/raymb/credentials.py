"""What is secret: environment variables that are not known to be harmless, and passwords and tokens in addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping

_HARMLESS = frozenset(
    """
    CUDA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES NVIDIA_TF32_OVERRIDE NVIDIA_VISIBLE_DEVICES
    HOME LANG LANGUAGE PATH SHELL TMPDIR TZ USER XDG_CACHE_HOME XDG_CONFIG_HOME
    TOKENIZERS_PARALLELISM TRANSFORMERS_CACHE TRANSFORMERS_NO_ADVISORY_WARNINGS TRANSFORMERS_OFFLINE
    TRANSFORMERS_VERBOSITY
    HF_ASSETS_CACHE HF_DATASETS_CACHE HF_DATASETS_OFFLINE HF_DEBUG HF_ENDPOINT HF_HOME HF_HUB_CACHE
    HF_HUB_DISABLE_IMPLICIT_TOKEN HF_HUB_DISABLE_PROGRESS_BARS HF_HUB_DISABLE_SYMLINKS_WARNING
    HF_HUB_DISABLE_TELEMETRY HF_HUB_DISABLE_XET HF_HUB_DOWNLOAD_TIMEOUT HF_HUB_ENABLE_HF_TRANSFER
    HF_HUB_ETAG_TIMEOUT HF_HUB_OFFLINE HF_HUB_VERBOSITY HF_MODULES_CACHE HF_TOKEN_PATH HF_XET_CACHE
    HF_XET_HIGH_PERFORMANCE HUGGINGFACE_HUB_CACHE
    WANDB_BASE_URL WANDB_CACHE_DIR WANDB_CONFIG_DIR WANDB_DATA_DIR WANDB_DIR WANDB_DISABLED WANDB_ENTITY WANDB_MODE
    WANDB_NAME WANDB_NOTES WANDB_PROJECT WANDB_RUN_GROUP WANDB_SILENT WANDB_TAGS
    AWS_CA_BUNDLE AWS_CONFIG_FILE AWS_DEFAULTS_MODE AWS_DEFAULT_PROFILE AWS_DEFAULT_REGION AWS_EC2_METADATA_DISABLED
    AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_MAX_ATTEMPTS AWS_PROFILE AWS_REGION AWS_REQUEST_CHECKSUM_CALCULATION
    AWS_RESPONSE_CHECKSUM_VALIDATION AWS_RETRY_MODE AWS_ROLE_ARN AWS_ROLE_SESSION_NAME AWS_SHARED_CREDENTIALS_FILE
    AWS_STS_REGIONAL_ENDPOINTS AWS_WEB_IDENTITY_TOKEN_FILE
    AZURE_CLIENT_ID AZURE_STORAGE_ACCOUNT_NAME AZURE_TENANT_ID
    GOOGLE_APPLICATION_CREDENTIALS GOOGLE_CLOUD_PROJECT
    HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy
    CURL_CA_BUNDLE REQUESTS_CA_BUNDLE SSL_CERT_DIR SSL_CERT_FILE
    """.split()  # noqa: SIM905 (a name a line would be eighty lines)
)
"""Settings and paths of files. One that is missing here is passed on as a secret is, which harms nothing."""
_HARMLESS_KINDS = (
    *("CUBLAS_", "CUDA_", "CUDNN_", "FI_", "GLOO_", "GOMP_", "KMP_", "LC_", "LD_", "MALLOC_", "MEGATRON_", "MKL_"),
    *("NCCL_", "NVTE_", "OMP_", "OPENBLAS_", "PYTHON", "PYTORCH_", "RAYMB_", "TORCH_", "TORCHDYNAMO_"),
    *("TORCHINDUCTOR_", "TRITON_", "UCX_"),
)
"""How the names of libraries' settings begin, none of which logs in anywhere."""
_SOUNDS_SECRET = re.compile(r"AUTH|CREDENTIAL|KEY|PASS|SECRET|TOKEN", re.I)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:/{1,2}[^\s'\"<>`]+")
_USER = re.compile(
    r"(?P<scheme>[^:]+)(?P<slashes>:/{1,2})(?P<user>[^/?#]*|[^/@:]*:(?!\d{1,5}[/?#])[^@]*)@"  # AWS's keys have slashes
)
_PARAMETER = re.compile(
    r"([?&;#](?:[^=&;#]*(?:auth|cred|passw|pwd|secret|signature|token)[^=&;#]*|(?:[^=&;#]*[-_.])?sig"
    r"|(?:[^=&;#]*[-_.]|api|access|account)?key))=[^&;#]+",
    re.I,
)


def is_harmless(name: str, value: str) -> bool:
    """Whether an environment variable may be seen by others: in logs, in Ray's lists, in files of a run or a job."""
    of_a_kind = name.startswith(_HARMLESS_KINDS) and not _SOUNDS_SECRET.search(name)
    return (name in _HARMLESS or of_a_kind) and not has_credentials(value)


def harmless(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if is_harmless(name, value)}


def secret(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that are not known to be harmless."""
    return {name: value for name, value in variables.items() if not is_harmless(name, value)}


def redacted(text: str) -> str:
    """A text whose addresses have no passwords and no tokens: https://***@host/path?token=***"""
    return _URL.sub(lambda found: _without_credentials(found[0]), text)


def has_credentials(text: str) -> bool:
    return redacted(text) != text


def _without_credentials(url: str) -> str:
    found = _USER.match(url)
    # A name alone is a token on the web; elsewhere it is a user (sftp://me@host) or a container (abfss://data@account).
    if found and (":" in found["user"] or found["scheme"].lower() in ("http", "https")):
        url = f"{found['scheme']}{found['slashes']}***@{url[found.end() :]}"
    return _PARAMETER.sub(r"\1=***", url)
