"""The command `fusisd`: imports the daemon only when its packages are there, and says how to get them when not."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run fusisd with this command line (None: the process's own); the exit status."""
    from fusisd import config
    from fusisd.errors import StartupError

    try:
        parsed = config.parse(arguments)
    except StartupError as error:
        print(f"fusisd: {error}", file=sys.stderr)
        return error.status
    try:
        from fusisd import daemon
    except ModuleNotFoundError as error:
        if error.name not in ("bottle", "cheroot", "msgpack"):
            raise
        print(f"fusisd: the package {error.name} is missing: pip install 'pyipvs[fusisd]'", file=sys.stderr)
        return 1
    if parsed.check_only:
        return daemon.check(parsed)
    return daemon.main(parsed, lambda: config.parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
