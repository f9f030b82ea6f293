"""A program: one daemon with its part in the middle, for machines of their own.

``python -m tests.support.middle_program FOLDER HOST [ADDRESS]`` connects to the peer at ADDRESS and says
who it is. The first line that comes in names a peer to open streams to all the time; how many of them it
has answered is said, and how peers are reached whenever that changes. Every line out is JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from runnel.dht import shortcuts
from runnel.dht.daemon import Daemon, DaemonOptions
from runnel.dht.daemon_transport import HivemindTransport
from runnel.dht.middle import Middle
from runnel.dht.multiaddr import parse_peer_address
from runnel.errors import NetworkError, PeerError
from runnel.protocols import Stream
from runnel.types import PeerId
from tests.support.daemons import in_s, new_key


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


async def answer(stream: Stream) -> None:
    await stream.send(await stream.receive(max_bytes=100, deadline=in_s(10)), deadline=in_s(10))


async def talk(transport: HivemindTransport, peer: PeerId) -> None:
    echoes = 0
    while True:
        try:
            stream = await transport.open(peer, "echo", deadline=in_s(10))
            await stream.send(b"hello", deadline=in_s(10))
            await stream.receive(max_bytes=100, deadline=in_s(10))
            await stream.aclose()
            echoes += 1
            say(echoes=echoes)
        except (NetworkError, PeerError, TimeoutError) as error:
            logging.getLogger(__name__).debug("echo: %s", error)
        await asyncio.sleep(0.5)


async def main(folder: Path, host: str, address: str) -> None:
    shortcuts.FIRST_TRY_S = 1.0
    options = DaemonOptions(identity_path=new_key(folder, "key"), listen_host="0.0.0.0")
    daemon = await Daemon.start(options)
    transport = await HivemindTransport.start(daemon)
    middle = Middle(daemon, transport, listens=True)
    middle.belongs(lambda _: True)
    await middle.serve(relay=True)
    await transport.serve("echo", answer)
    name, _ = await daemon.control.identify(deadline=in_s(10))
    if address:
        public = parse_peer_address(address)
        await daemon.control.connect(public.peer, [public.address], deadline=in_s(20))
    say(peer=name.hex(), address=f"/ip4/{host}/tcp/{daemon.port}")
    asking = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    said, talking = "", None
    while True:
        if asking.done() and talking is None and (line := asking.result().strip()):
            peer = PeerId(bytes.fromhex(line))
            talking = asyncio.get_running_loop().create_task(talk(transport, peer))
        await middle.tend([f"/ip4/{host}/tcp/{daemon.port}"])
        ways = {
            peer.hex(): route.relay.hex() if route.relay else "directly"
            for peer, route in middle.routes.items()
        }
        if said != (said := json.dumps(ways)):
            say(ways=ways)
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    if os.environ.get("DEBUG"):
        logging.basicConfig(level=logging.DEBUG)
    asyncio.Runner().run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
