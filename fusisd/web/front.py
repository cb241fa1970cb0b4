"""The HTTP front as the configuration wants it: the application, who is let in, and where it listens.

Does not: know the kernel; it is told which addresses are the interface's own and which are VIPs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial

from fusisd import systemd
from fusisd.config import PORT, Config
from fusisd.errors import FusisError
from fusisd.ports import Core
from fusisd.web.app import make_app
from fusisd.web.auth import WritePolicy
from fusisd.web.certificate import Certificate
from fusisd.web.entry import Entry
from fusisd.web.listeners import chosen
from fusisd.web.server import WebServer
from fusisd.web.tokens import Tokens

LOOK_S = 1.0


class Front:
    """The server, and what must be looked after while it runs."""

    def __init__(
        self, config: Config, core: Core, own: Iterable[str], is_vip: Callable[[str], bool], wall_clock: Callable[[], float]
    ) -> None:
        """`own`: the addresses to listen on unless the configuration names others or systemd passes sockets. Raises
        StartupError."""
        tokens = Tokens.load(config.state_dir, wall_clock)
        policy = WritePolicy(tokens, config.allow_plaintext_writes, config.private)
        self._certificate = None if config.tls is None else Certificate(*config.tls)
        entry = Entry(is_vip, config.host_names, config.trusted_proxies, self._certificate)
        listeners = chosen(config.listen, own, PORT, str(config.socket), systemd.passed_sockets())
        self.server = WebServer(make_app(core, policy), listeners, entry=entry)

    def reload(self) -> None:
        """Read the certificate's files again though they look the same; from the event loop."""
        if self._certificate is not None:
            asyncio.get_running_loop().run_in_executor(None, partial(self._certificate.refresh, anyway=True))

    async def look_after(self) -> None:
        """Load a changed certificate. Raises FusisError when the server's thread ended: nobody is answered then."""
        while self.server.running:
            if self._certificate is not None:
                await asyncio.get_running_loop().run_in_executor(None, self._certificate.refresh)
            await asyncio.sleep(LOOK_S)
        raise FusisError("the HTTP front ended by a defect; the log above has it")
