"""Who we are to S3 and where it is: credentials, endpoint and region.

Credentials come from botocore's chain (environment, profile, container or instance role), so
whatever works for the AWS command line works here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from segcore.errors import AccessDenied
from segcore.storage.remote_errors import CREDENTIALS_HINT


@dataclass(frozen=True)
class S3Session:
    """What the clients of one bucket share.

    Attributes:
        session: botocore's session, which renews credentials.
        endpoint: URL of the server without a slash at its end; None for AWS itself.
        anonymous: Whether requests are not signed.
    """

    session: Any
    endpoint: str | None
    region: str
    anonymous: bool


def open_session(bucket: str, options: Any) -> S3Session:
    """The session for a bucket; `options` is a `StorageOptions`.

    Raises:
        AccessDenied: No credentials were found and `options.anonymous` is false.
    """
    import botocore.exceptions
    import botocore.session

    session = botocore.session.Session()
    try:
        profile = session.get_scoped_config()
        if not options.anonymous and session.get_credentials() is None:
            raise AccessDenied(
                f"No AWS credentials were found for s3://{bucket}.",
                CREDENTIALS_HINT + " For a public bucket set storage.anonymous=true.",
            )
    except botocore.exceptions.BotoCoreError as error:
        raise AccessDenied(f"AWS credentials cannot be used: {error}", CREDENTIALS_HINT) from error
    environment = os.environ
    endpoint = (
        options.endpoint_url
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or profile.get("endpoint_url")
    )
    region = (
        options.region
        or environment.get("AWS_REGION")
        or session.get_config_variable("region")
        or "us-east-1"
    )
    return S3Session(session, endpoint.rstrip("/") if endpoint else None, region, options.anonymous)
