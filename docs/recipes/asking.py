"""Somebody else decides: every request that the policy allows is asked about."""

import asyncio

from proxylib import Exact, FramedParser, L7Rule, Message, lines, parser


@parser("recipe.asking")
class Asking(FramedParser):
    """Asks the service at HOST:PORT that the operator has named (--set service=HOST:PORT)."""

    framing = lines(b"\r\n", limit=4096)
    ask_timeout = 0.5  # seconds; then, and if the service fails, ...
    ask_otherwise = False  # ... the answer is no

    class Rule(L7Rule):
        cmd = Exact()

    def request(self, frame):
        return Message(cmd=frame.partition(b" ")[0])

    async def ask(self, request):
        host, _, port = self.connection.config["service"].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(b"may " + request["cmd"] + b"\n")
            return await reader.readline() == b"yes\n"
        finally:
            writer.close()

    def denied(self, request):
        return b"-not allowed\r\n"
