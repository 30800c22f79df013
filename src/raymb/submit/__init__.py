"""A run as the job of a cluster: one file a target renders the same checked RunSpec for the target's own client.

    flags + YAML -> RunSpec -> check.submission -> Target.files -> a directory -> the target's client

What a target needs (an account, an image, a namespace, ...) are the fields of its class, and so its flags. The files
hold no secret: only the names of environment variables that are passed on.
"""
